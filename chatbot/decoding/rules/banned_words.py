"""Words that a reply never says, whatever tokens would spell them."""

from __future__ import annotations

import codecs
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence

import torch


class BannedWords:
    """Knows which tokens would complete a banned word.

    Works on the bytes of the text: UTF-8 never finds a character inside another one, and a word is found even where its
    characters are spelled byte by byte. ASCII letters match in both cases, other words as they stand, in small letters, in
    capitals and with a capital at the start.

    Args:
        words: What must not be said.
        pieces: The bytes of each token, `[V]`; special tokens have none, so the end of turn is never touched. Where no
            token has a space (WordPiece, which puts them in when it shows a text) those of the words do not count.
    """

    def __init__(self, words: Sequence[str], pieces: Sequence[bytes]):
        self.pieces = [piece.lower() for piece in pieces]
        spaced = any(b" " in piece for piece in self.pieces)
        forms = {form for word in words for form in (word, word.lower(), word.upper(), word.capitalize())}
        spelled = sorted({(form if spaced else form.replace(" ", "")).encode().lower() for form in forms} - {b""})
        self.longest = max(map(len, spelled), default=0) - 1
        self._always = torch.tensor(_holding(spelled, self.pieces), dtype=torch.int64)
        order = sorted(range(len(self.pieces)), key=self.pieces.__getitem__)
        ordered = [self.pieces[token] for token in order]
        completing: defaultdict[bytes, set[int]] = defaultdict(set)
        for word in spelled:
            for cut in range(1, len(word)):
                first, last = bisect_left(ordered, word[cut:]), bisect_left(ordered, word[cut:] + b"\xff")
                if first < last:
                    completing[word[:cut]].update(order[first:last])
        self._after = {said: torch.tensor(sorted(tokens)) for said, tokens in completing.items()}

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Sets the logits `[B, V]` of what would complete a word after each of the B replies to -inf, in place."""
        logits[:, self._always.to(logits.device)] = -torch.inf
        for row, reply in enumerate(replies):
            for tail in self._tails(reply):
                for length in range(1, min(len(tail), self.longest) + 1):
                    tokens = self._after.get(tail[-length:])
                    if tokens is not None:
                        logits[row, tokens.to(logits.device)] = -torch.inf

    def _tails(self, reply: Sequence[int]) -> set[bytes]:
        """How the reply may end: bytes of an unfinished character are shown if the next token goes on with it, else not."""
        tail = b""
        for token in reversed(reply):
            if len(tail) >= self.longest + 8:  # a few more, for bytes that are dropped
                break
            tail = self.pieces[token] + tail
        decoder = codecs.getincrementaldecoder("utf-8")("ignore")
        whole = decoder.decode(tail).encode()
        return {whole, whole + decoder.getstate()[0]}


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
