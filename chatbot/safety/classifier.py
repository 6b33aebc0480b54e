"""A linear classifier of messages by people in need, for the sentences that no list of phrases foresees.

A message is scored by logistic regression on its character n-grams. Features are the n-grams of 1 to 4 letters of the folded
text (`chatbot.safety.folding.fold`) with marks for its ends, hashed into buckets (Weinberger et al. 2009, arXiv:0902.2206)
and scaled to unit length:

    score = b + sum over n-grams g of w[hash(g)] / sqrt(number of different n-grams)

A long message is scored by its parts as well, because one sentence about dying counts however long the story around it is.
Weights are int8 with one scale. They are trained by checkpoints/recipe/need/train.py on sentences written for this project.
"""

from __future__ import annotations

import itertools
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from chatbot.safety.folding import CLAUSE, SENTENCE, Folded, fold

BUCKETS = 1 << 16
LONGEST_NGRAM = 4
SHORT_LETTERS = 12
"""Parts of fewer letters are scored together with their neighbour; in shorter messages a phrase cannot be vetoed."""
LONG_LETTERS = 100
"""In longer messages a phrase cannot be vetoed either: much harmless text around it proves nothing."""
FEWEST_LETTERS = 6
"""Messages of fewer letters are left to the phrases: their n-grams say too little."""
MAX_LETTERS = 4000
"""Letters of a message that are scored; the rest is scored as if the message ended there."""


def buckets_of(text: str) -> np.ndarray:
    """Return the buckets of the n-grams of a folded text, int64, each once."""
    marked = f"^{text}$"
    data = [
        zlib.crc32(marked[start : start + size].encode()) % BUCKETS
        for size in range(1, LONGEST_NGRAM + 1)
        for start in range(len(marked) - size + 1)
    ]
    return np.unique(np.array(data, np.int64))


def parts_of(folded: Folded) -> Iterator[str]:
    """Yield the texts of a message that are scored: the whole, its sentences, and pairs of neighbouring clauses."""
    yield folded.text
    for separator in (SENTENCE, CLAUSE):
        starts = [place for place, kind in enumerate(folded.breaks[:-1]) if kind >= separator]
        pieces = [folded.text[a:b] for a, b in zip(starts, [*starts[1:], len(folded.text)], strict=True)]
        if len(pieces) > 1:
            yield from (piece for piece in pieces if len(piece) >= SHORT_LETTERS)
            yield from (first + second for first, second in itertools.pairwise(pieces))


class NeedClassifier:
    """Scores messages.

    Args:
        weights: int8 `[BUCKETS]`.
        scale: Value of one unit of the weights.
        bias: Added to every score.
        threshold: Least score of a message by a person in need.
        veto: A message that a phrase list finds is harmless all the same if it scores less than this.
    """

    def __init__(self, weights: np.ndarray, scale: float, bias: float, threshold: float, veto: float):
        self.weights, self.scale, self.bias, self.threshold, self.veto = weights, scale, bias, threshold, veto

    @classmethod
    def load(cls, path: Path) -> NeedClassifier:
        """Read a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            numbers = [float(file[name]) for name in ("scale", "bias", "threshold", "veto")]
            return cls(file["weights"], *numbers)

    def save(self, path: Path) -> None:
        """Write the classifier as a compressed .npz file."""
        numbers = {name: getattr(self, name) for name in ("scale", "bias", "threshold", "veto")}
        np.savez_compressed(path, weights=self.weights, **numbers)

    def score(self, message: str) -> float:
        """Return the largest score of a message's parts."""
        folded = fold(message)
        if len(folded.text) > MAX_LETTERS:
            breaks = (*folded.breaks[:MAX_LETTERS], SENTENCE)
            folded = Folded(folded.text[:MAX_LETTERS], folded.places[:MAX_LETTERS], breaks)
        return max(map(self._score, parts_of(folded)))

    def _score(self, text: str) -> float:
        buckets = buckets_of(text)
        return self.bias + self.scale * float(self.weights[buckets].sum(dtype=np.int64)) / len(buckets) ** 0.5

    def finds(self, message: str, has_phrase: bool) -> bool:
        """Return whether a message is by a person in need.

        Args:
            message: What the person wrote.
            has_phrase: Whether the phrase list finds it.
        """
        letters = len(fold(message).text)
        if letters < FEWEST_LETTERS or (has_phrase and not SHORT_LETTERS <= letters <= LONG_LETTERS):
            return has_phrase
        return self.score(message) >= (min(self.veto, self.threshold) if has_phrase else self.threshold)
