"""Vocabulary of the decoder: the end of turn, tokens that never occur in a reply, and the bytes of each token."""

from __future__ import annotations

from dataclasses import dataclass, field

from chatbot.decoding.rules.banned_words import BannedWords
from chatbot.decoding.rules.readable import ReadableText
from chatbot.decoding.rules.thinking import ThinkingTokens

CACHED_WORD_LISTS = 8
"""Number of lists of banned words whose rules are cached."""


@dataclass(frozen=True)
class Vocabulary:
    """Properties of the tokens that decoding needs.

    Attributes:
        end_id: Id of the end of turn.
        banned_ids: Ids that never occur in a reply.
        pieces: Bytes of each token, for banned words.
        readable: Rule that keeps unreadable characters out of replies, or None.
        thinking: Tokens of a thinking block, which are among `banned_ids`, or None if the model has none.
    """

    end_id: int
    banned_ids: tuple[int, ...]
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    readable: ReadableText | None = field(default=None, repr=False, compare=False)
    thinking: ThinkingTokens | None = None
    _cache: dict[tuple[str, ...], BannedWords] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ban(self, words: tuple[str, ...]) -> BannedWords:
        """Return the rule for a list of banned words; it is cached, because creating it is slow."""
        rule = self._cache.pop(words, None) or BannedWords(words, self.pieces)
        self._cache[words] = rule
        while len(self._cache) > CACHED_WORD_LISTS:
            self._cache.pop(next(iter(self._cache)))
        return rule
