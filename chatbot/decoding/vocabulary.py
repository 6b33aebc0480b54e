"""Vocabulary of the decoder: the end of turn, the tokens that are never said, and the bytes of each token."""

from __future__ import annotations

from dataclasses import dataclass, field

from chatbot.decoding.rules.banned_words import BannedWords

BANNED_LISTS = 8
"""Lists of banned words that are kept ready."""


@dataclass(frozen=True)
class Vocabulary:
    """What decoding has to know of the tokens.

    Attributes:
        end_id: Ends a turn.
        banned_ids: Never appear in a reply.
        pieces: The bytes of each token, for banned words.
    """

    end_id: int
    banned_ids: tuple[int, ...]
    pieces: tuple[bytes, ...] = field(default=(), repr=False)
    _found: dict[tuple[str, ...], BannedWords] = field(default_factory=dict, init=False, repr=False, compare=False)

    def ban(self, words: tuple[str, ...]) -> BannedWords:
        """The rule for these words; kept, for it takes a while to make."""
        rule = self._found.pop(words, None) or BannedWords(words, self.pieces)
        self._found[words] = rule
        while len(self._found) > BANNED_LISTS:
            self._found.pop(next(iter(self._found)))
        return rule
