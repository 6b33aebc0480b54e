"""Words that a reply never says, whatever tokens would spell them, but where what stands before makes them harmless."""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import torch

from chatbot.safety.words import split_words


class BannedWords:
    """Knows which tokens would complete a banned word.

    Works on the bytes of the text: UTF-8 never finds a character inside another one, and a word is found even where its
    characters are spelled byte by byte. ASCII letters match in both cases, other words as they stand, in small letters, in
    capitals and with a capital at the start.

    An exception (`!妈妈的` for 妈的) allows the word where the reply ends with the whole exception, so a word with
    exceptions takes a look at the text before it; only the tokens that would complete the word are looked at.

    Args:
        words: What must not be said, and exceptions that begin with `!`.
        pieces: The bytes of each token, `[V]`; special tokens have none, so the end of turn is never touched. Where no
            token has a space (WordPiece, which puts them in when it shows a text) those of the words do not count.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes]):
        self.pieces = [piece.lower() for piece in pieces]
        spaced = any(b" " in piece for piece in self.pieces)
        banned, exceptions = split_words(words)
        every, harmless = _spelled(banned, spaced), _spelled(exceptions, spaced)
        harmless_of = {word: frozenset(each for each in harmless if _makes_harmless(each, word)) for word in every}
        self._guarded = {word: exceptions for word, exceptions in harmless_of.items() if exceptions}
        spelled = sorted(set(every) - set(self._guarded))
        self.longest = max(map(len, [*every, *harmless]), default=0) - 1
        self._always = torch.tensor(_holding(spelled, self.pieces), dtype=torch.int64)
        self._perhaps = _holding(self._guarded, self.pieces)
        order = sorted(range(len(self.pieces)), key=self.pieces.__getitem__)
        ordered = [self.pieces[token] for token in order]
        after = _completing(spelled, order, ordered)
        self._after = {said: torch.tensor(sorted(tokens)) for said, tokens in after.items()}
        self._perhaps_after = _completing(self._guarded, order, ordered)

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Sets the logits `[B, V]` of what would complete a word after each of the B replies to -inf, in place."""
        logits[:, self._always.to(logits.device)] = -torch.inf
        for row, reply in enumerate(replies):
            end = self._end(reply)
            if self._guarded:
                logits[row, self._said(end).to(logits.device)] = -torch.inf
            for tail in _tails(end):
                for length in range(1, min(len(tail), self.longest) + 1):
                    tokens = self._after.get(tail[-length:])
                    if tokens is not None:
                        logits[row, tokens.to(logits.device)] = -torch.inf

    def _said(self, end: bytes) -> torch.Tensor:
        """The tokens after which a word with exceptions would be said where none of them makes it harmless."""
        tokens = set(self._perhaps)
        for tail in _tails(end):
            for length in range(1, min(len(tail), self.longest) + 1):
                tokens |= self._perhaps_after.get(tail[-length:], set())
        shown = len(end.decode("utf-8", "ignore").encode())
        return torch.tensor(
            sorted(token for token in tokens if self._harms((end + self.pieces[token]), shown)), dtype=torch.int64
        )

    def _harms(self, text: bytes, shown: int) -> bool:
        """Whether a text, of which so many bytes have been said already, ends a guarded word that is not harmless."""
        text = text.decode("utf-8", "ignore").encode()
        for word, exceptions in self._guarded.items():
            place = text.find(word, max(0, shown - len(word) + 1))
            while place >= 0:
                end = place + len(word)
                if not any(
                    text[end - size : end] in exceptions
                    for size in range(len(word) + 1, min(end, self.longest + 1) + 1)
                ):
                    return True
                place = text.find(word, place + 1)
        return False

    def _end(self, reply: Sequence[int]) -> bytes:
        """The last bytes of a reply, as many as matter."""
        tail = b""
        for token in reversed(reply):
            if len(tail) >= self.longest + 8:  # a few more, for bytes that are dropped
                break
            tail = self.pieces[token] + tail
        return tail


def _tails(end: bytes) -> set[bytes]:
    """How a reply may end: bytes of an unfinished character are shown if the next token goes on with it, else not."""
    decoder = codecs.getincrementaldecoder("utf-8")("ignore")
    whole = decoder.decode(end).encode()
    return {whole, whole + decoder.getstate()[0]}


def _spelled(words: Sequence[str], spaced: bool) -> list[bytes]:
    """The bytes of words in their forms."""
    forms = {form for word in words for form in (word, word.lower(), word.upper(), word.capitalize())}
    return sorted({(form if spaced else form.replace(" ", "")).encode().lower() for form in forms} - {b""})


def _makes_harmless(exception: bytes, word: bytes) -> bool:
    return len(exception) > len(word) and exception.endswith(word)


def _completing(words: Sequence[bytes], order: Sequence[int], ordered: Sequence[bytes]) -> dict[bytes, set[int]]:
    """The tokens that complete a word, by its part that has been said.

    Args:
        words: The words.
        order: Tokens in the order of their bytes.
        ordered: Their bytes.
    """
    completing: defaultdict[bytes, set[int]] = defaultdict(set)
    for word in words:
        for cut in range(1, len(word)):
            first, last = bisect_left(ordered, word[cut:]), bisect_left(ordered, word[cut:] + b"\xff")
            if first < last:
                completing[word[:cut]].update(order[first:last])
    return dict(completing)


def _holding(words: Sequence[bytes], pieces: Sequence[bytes]) -> list[int]:
    """Places of the pieces that hold one of the words."""
    known = set(words)
    sizes = sorted({len(word) for word in words})
    return [
        place
        for place, piece in enumerate(pieces)
        if any(
            piece[start : start + size] in known
            for size in sizes
            if size <= len(piece)
            for start in range(len(piece) - size + 1)
        )
    ]
