"""Banned words: a token that would complete a banned word is forbidden, unless the text before makes the word harmless."""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Collection, Sequence

import torch

from chatbot.safety.words import split_words

UNFINISHED_BYTES = 8
"""Number of further bytes to keep at the end of a reply, because the bytes of an unfinished character are dropped."""


class BannedWords:
    """Logits rule against the tokens that would complete a banned word.

    The rule works on the UTF-8 bytes of the text, so a word is recognised even if its characters are spelled by several
    tokens; in UTF-8, no character occurs inside another one. ASCII letters match in both cases; other letters match as
    written, in lower case, in upper case and capitalised.

    An exception (`!妈妈的` for 妈的) allows the word as the last part of the whole exception: when a token completes the
    word, the text up to there must end with the exception. For a word with exceptions, the rule therefore also checks
    the text before the word, but only for tokens that would complete it.

    Args:
        words: Banned words, and exceptions that begin with `!`.
        pieces: Bytes of each token, `[V]`; empty for special tokens, so EOS is never forbidden. If no token contains a
            space (WordPiece, which adds spaces for display), spaces in the words are ignored.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes]):
        self.pieces = [piece.lower() for piece in pieces]
        spaced = any(b" " in piece for piece in self.pieces)
        banned, exceptions = split_words(words)
        forms, harmless = spellings(banned, spaced), spellings(exceptions, spaced)
        harmless_of = {
            word: frozenset(exception for exception in harmless if _is_exception_of(exception, word)) for word in forms
        }
        self._guarded = {word: matching for word, matching in harmless_of.items() if matching}
        unguarded = sorted(set(forms) - set(self._guarded))
        self.max_prefix_bytes = max(map(len, [*forms, *harmless]), default=0) - 1
        self._always = torch.tensor(_tokens_containing(unguarded, self.pieces), dtype=torch.int64)
        self._guarded_inside = _tokens_containing(self._guarded, self.pieces)
        order = sorted(range(len(self.pieces)), key=self.pieces.__getitem__)
        ordered = [self.pieces[token] for token in order]
        completing = _tokens_completing(unguarded, order, ordered)
        self._completing = {prefix: torch.tensor(sorted(tokens)) for prefix, tokens in completing.items()}
        self._guarded_completing = _tokens_completing(self._guarded, order, ordered)

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Set the logits `[B, V]` of tokens that would complete a banned word in their reply to -inf, in place."""
        logits[:, self._always.to(logits.device)] = -torch.inf
        for row, reply in enumerate(replies):
            end = self._last_bytes(reply)
            if self._guarded:
                logits[row, self._harmful_tokens(end).to(logits.device)] = -torch.inf
            for tail in _tails(end):
                for length in range(1, min(len(tail), self.max_prefix_bytes) + 1):
                    tokens = self._completing.get(tail[-length:])
                    if tokens is not None:
                        logits[row, tokens.to(logits.device)] = -torch.inf

    def _harmful_tokens(self, end: bytes) -> torch.Tensor:
        """Return the tokens that complete a word with exceptions after `end`, but no exception, int64 `[N]`."""
        tokens = set(self._guarded_inside)
        for tail in _tails(end):
            for length in range(1, min(len(tail), self.max_prefix_bytes) + 1):
                tokens |= self._guarded_completing.get(tail[-length:], set())
        shown = len(end.decode("utf-8", "ignore").encode())
        harmful = sorted(token for token in tokens if self._is_harmful(end + self.pieces[token], shown))
        return torch.tensor(harmful, dtype=torch.int64)

    def _is_harmful(self, text: bytes, shown: int) -> bool:
        """Whether the text has a banned word that ends after the first `shown` bytes and is not inside an exception."""
        text = text.decode("utf-8", "ignore").encode()
        for word, exceptions in self._guarded.items():
            start = text.find(word, max(0, shown - len(word) + 1))
            while start >= 0:
                end = start + len(word)
                if not any(
                    text[end - size : end] in exceptions
                    for size in range(len(word) + 1, min(end, self.max_prefix_bytes + 1) + 1)
                ):
                    return True
                start = text.find(word, start + 1)
        return False

    def _last_bytes(self, reply: Sequence[int]) -> bytes:
        """Return the last bytes of a reply: as many as the longest banned word or exception can cover."""
        tail = b""
        for token in reversed(reply):
            if len(tail) >= self.max_prefix_bytes + UNFINISHED_BYTES:
                break
            tail = self.pieces[token] + tail
        return tail


def _tails(end: bytes) -> set[bytes]:
    """Return the possible ends of a reply: with and without the bytes of an unfinished character.

    These bytes are shown only if the next token continues the character.
    """
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    complete = decoder.decode(end).encode()
    return {complete, complete + decoder.getstate()[0]}


def spellings(words: Sequence[str], spaced: bool) -> list[bytes]:
    """Return the bytes of all forms of the words: as written, lower case, upper case, capitalised."""
    forms = {form for word in words for form in (word, word.lower(), word.upper(), word.capitalize())}
    return sorted({(form if spaced else form.replace(" ", "")).encode().lower() for form in forms} - {b""})


def _is_exception_of(exception: bytes, word: bytes) -> bool:
    return len(exception) > len(word) and exception.endswith(word)


def _tokens_completing(
    words: Collection[bytes], order: Sequence[int], ordered: Sequence[bytes]
) -> dict[bytes, set[int]]:
    """Return, for each proper prefix of a word, the tokens that begin with the rest of the word.

    Args:
        words: The words.
        order: Token ids sorted by their bytes.
        ordered: The bytes of these tokens.
    """
    completing: defaultdict[bytes, set[int]] = defaultdict(set)
    for word in words:
        for cut in range(1, len(word)):
            first, last = bisect_left(ordered, word[cut:]), bisect_left(ordered, word[cut:] + b"\xff")
            if first < last:
                completing[word[:cut]].update(order[first:last])
    return dict(completing)


def _tokens_containing(words: Collection[bytes], pieces: Sequence[bytes]) -> list[int]:
    """Return the ids of the tokens whose bytes contain one of the words."""
    known = set(words)
    sizes = sorted({len(word) for word in words})
    return [
        token
        for token, piece in enumerate(pieces)
        if any(
            piece[start : start + size] in known
            for size in sizes
            if size <= len(piece)
            for start in range(len(piece) - size + 1)
        )
    ]
