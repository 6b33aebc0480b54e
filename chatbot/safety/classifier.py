"""A linear classifier that finds messages by people in crisis, for sentences that are in no list of phrases.

A text is scored by logistic regression on its character n-grams. Features are the n-grams of 1 to 4 letters of the
folded text (`chatbot.safety.folding.fold`) with marks for its ends, hashed into buckets (Weinberger et al. 2009,
arXiv:0902.2206) and scaled to unit length:

    score = b + sum over n-grams g of w[hash(g)] / sqrt(number of different buckets)

A message is scored as a whole and in parts, because one sentence about dying counts however long the story around it
is. The time is linear in the length of the message. Weights are int8 with one scale. They are trained by
checkpoints/recipe/need/train.py on sentences written for this project.
"""

from __future__ import annotations

import itertools
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from chatbot.safety.folding import CLAUSE, NONE, SENTENCE, SPACE, Folded, fold, is_latin

BITS = 20
BUCKETS = 1 << BITS
LONGEST_NGRAM = 4
SHORT_LETTERS = 12
"""Parts with fewer letters are scored together with a neighbour. In shorter messages the classifier cannot overrule
(veto) a phrase."""
LONG_LETTERS = 100
"""In longer messages the classifier cannot overrule a phrase either, because harmless text around it proves nothing.
Longer sentences are scored in windows of this length."""
SIDE_LETTERS = 4
"""Letters of the clause before and after a phrase that are scored with it, so that other text cannot hide it."""
FEWEST_LETTERS = 6
"""Messages with fewer letters are judged by the phrases alone, because their n-grams tell too little."""
MOST_LETTERS = 64_000
"""Maximum number of letters that are scored; of a longer message, half of this number from each end. Phrases are
searched for in the whole message."""
BATCH_LETTERS = 1 << 15
"""Letters that are scored at once, which bounds the memory."""
FEW_PARTS, PER_DOUBLING = 8, 0.4
"""The largest of many scores is large by chance, so each doubling of the parts beyond `FEW_PARTS` lowers the score."""

MULTIPLIERS = np.random.default_rng(0).integers(1 << 31, size=(LONGEST_NGRAM, LONGEST_NGRAM), dtype=np.uint32) * 2 + 1
_BEGIN, _END = ord("^"), ord("$")  # a folded text does not contain them


def buckets_of(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return the distinct n-gram buckets of each folded text, and how many each text has.

    Returns:
        Buckets int64 `[sum(counts)]`, text by text, and counts int64 `[len(texts)]`.
    """
    whole = np.uint32 if len(texts) <= 1 << (32 - BITS) else np.uint64  # owner and bucket in one number
    codes = np.frombuffer("".join(f"^{text}$" for text in texts).encode("utf-32-le"), np.uint32)
    owner = np.repeat(np.arange(len(texts), dtype=whole) * BUCKETS, [len(text) + 2 for text in texts])
    keys = []
    for size in range(1, min(LONGEST_NGRAM, len(codes)) + 1):
        count = len(codes) - size + 1
        hashes = codes[:count] * MULTIPLIERS[size - 1, 0]
        for offset in range(1, size):
            hashes += codes[offset : offset + count] * MULTIPLIERS[size - 1, offset]
        hashes ^= hashes >> 15
        hashes *= np.uint32(0x2C1B3C6D)
        keys.append((owner[:count] + (hashes >> (32 - BITS)))[owner[:count] == owner[size - 1 :]])
    ordered = np.concatenate(keys)
    ordered.sort()  # np.unique takes ten times as long
    unique = ordered[np.concatenate(([True], ordered[1:] != ordered[:-1]))].astype(np.int64)
    return unique % BUCKETS, np.bincount(unique // BUCKETS, minlength=len(texts))


def parts_of(folded: Folded) -> Iterator[str]:
    """Yield the texts of a message that are scored: the whole if it is short, its sentences, pairs of clauses.

    A space also divides clauses, except between Latin words and between letters that are written apart (想 去 死).
    """
    text = folded.text
    if len(text) <= LONG_LETTERS:
        yield text
    sentences = [index for index, kind in enumerate(folded.breaks[:-1]) if kind == SENTENCE]
    clauses = [index for index in range(len(text)) if _begins_clause(folded, index)]
    for starts in (sentences, clauses):
        pieces = [text[a:b] for a, b in itertools.pairwise([*starts, len(text)])]
        if len(pieces) > 1 or len(text) > LONG_LETTERS:
            yield from itertools.chain.from_iterable(map(_windows, pieces))
            yield from (a + b for a, b in itertools.pairwise(pieces) if len(a) + len(b) <= LONG_LETTERS)


def surroundings(folded: Folded, phrases: Iterable[Sequence[int]]) -> list[str]:
    """Return each phrase with at most `SIDE_LETTERS` letters of its clause before and after it.

    If the phrase has Latin letters between Chinese ones (自xx杀), also return it without them, because they are fillers.

    Args:
        folded: The message.
        phrases: Indices of the characters of each phrase, as `Phrases.places` returns them.
    """
    texts = []
    for places in phrases:
        start, end = bisect_left(folded.places, places[0]), bisect_right(folded.places, places[-1])
        first_letter, end_letter = start, end
        first, last = max(0, start - SIDE_LETTERS), min(len(folded.text), end + SIDE_LETTERS)
        while start > first and not _begins_clause(folded, start):
            start -= 1
        while end < last and not _begins_clause(folded, end):
            end += 1
        text, inside = folded.text, folded.text[first_letter:end_letter]
        texts.append(text[start:end])
        if chinese := "".join(letter for letter in inside if not is_latin(letter)):
            texts.append(text[start:first_letter] + chinese + text[end_letter:end])
    return list(dict.fromkeys(texts))


def _windows(piece: str) -> Iterator[str]:
    """Yield a piece of a message that is long enough to be scored by itself, in overlapping windows if it is long."""
    if len(piece) <= LONG_LETTERS:
        if len(piece) >= SHORT_LETTERS:
            yield piece
        return
    for start in range(0, len(piece) - LONG_LETTERS // 2, LONG_LETTERS // 2):
        yield piece[start : start + LONG_LETTERS]


def _begins_clause(folded: Folded, index: int) -> bool:
    """Whether the letter at `index` begins a clause."""
    return folded.breaks[index] >= CLAUSE or _divides(folded, index)


def _divides(folded: Folded, index: int) -> bool:
    """Whether the space before a letter divides clauses: it is not between Latin words or letters written apart."""
    breaks, text = folded.breaks, folded.text
    if breaks[index] != SPACE or (is_latin(text[index - 1]) and is_latin(text[index])):
        return False
    return breaks[index - 1] == NONE and breaks[index + 1] == NONE


class NeedClassifier:
    """Scores messages.

    Args:
        weights: int8 `[BUCKETS]`.
        scale: Factor that turns the int8 weights into scores.
        bias: Added to every score.
        threshold: Minimum score of a message by a person in crisis.
        veto: A message of medium length that matches a phrase list is still harmless if its score is below this.
        inputs: SHA-256 of the sentences that it was trained on, which tells whether they have changed since.
    """

    def __init__(self, weights: np.ndarray, scale: float, bias: float, threshold: float, veto: float, inputs: str = ""):
        self.weights, self.scale, self.bias, self.threshold, self.veto = weights, scale, bias, threshold, veto
        self.inputs = inputs

    @classmethod
    def load(cls, path: Path) -> NeedClassifier:
        """Read a file that `save` wrote."""
        with np.load(path, allow_pickle=False) as file:
            scale, bias, threshold, veto = (float(file[name]) for name in ("scale", "bias", "threshold", "veto"))
            inputs = str(file["inputs"]) if "inputs" in file else ""
            return cls(file["weights"], scale, bias, threshold, veto, inputs)

    def save(self, path: Path) -> None:
        """Write the classifier as a compressed .npz file."""
        numbers = {name: getattr(self, name) for name in ("scale", "bias", "threshold", "veto")}
        np.savez_compressed(path, weights=self.weights, inputs=np.array(self.inputs), **numbers)

    def score(self, message: str | Folded) -> float:
        """Return the largest score of a message's parts, less a correction for the number of parts (`PER_DOUBLING`)."""
        best, count = -math.inf, 0
        folded = message if isinstance(message, Folded) else fold(message)
        for batch in _batches(part for piece in _ends_of(folded) for part in parts_of(piece)):
            best, count = max(best, float(self.scores(batch).max())), count + len(batch)
        return best - PER_DOUBLING * math.log2(max(1.0, count / FEW_PARTS))

    def scores(self, texts: Sequence[str]) -> np.ndarray:
        """Return the scores of folded texts, float64 `[len(texts)]`."""
        buckets, counts = buckets_of(texts)
        sums = np.add.reduceat(self.weights[buckets].astype(np.int64), np.cumsum([0, *counts[:-1]]))
        return self.bias + self.scale * sums / np.sqrt(counts)

    def finds(self, message: str | Folded, phrases: Sequence[Sequence[int]]) -> bool:
        """Return whether a message is by a person in crisis.

        A phrase is ignored only if the message, and the phrase with the clause around it, both score as harmless. A
        harmless context alone cannot hide a phrase.

        Args:
            message: What the person wrote.
            phrases: For each phrase found in the text, the indices of its letters there (from `Phrases.places`).
        """
        return self.strength(message, phrases) >= (min(self.veto, self.threshold) if phrases else self.threshold)

    def strength(self, message: str | Folded, phrases: Sequence[Sequence[int]]) -> float:
        """Return the score that `finds` compares with the threshold, or with `veto` if there are phrases.

        The score is infinite if the message is too short or too long, so that the phrases alone decide.
        """
        folded = message if isinstance(message, Folded) else fold(message)
        letters = len(folded.text)
        if letters < FEWEST_LETTERS or (phrases and not SHORT_LETTERS <= letters <= LONG_LETTERS):
            return math.inf if phrases else -math.inf
        score = self.score(folded)
        return max(score, float(self.scores(surroundings(folded, phrases)).max())) if phrases else score


def _ends_of(folded: Folded) -> list[Folded]:
    """Return a message of at most `MOST_LETTERS` letters, or the two ends of a longer one."""
    size, half = len(folded.text), MOST_LETTERS // 2
    if size <= MOST_LETTERS:
        return [folded]
    return [
        Folded(folded.text[a:b], folded.places[a:b], (SENTENCE, *folded.breaks[a + 1 : b], SENTENCE))
        for a, b in ((0, half), (size - half, size))
    ]


def _batches(parts: Iterable[str]) -> Iterator[list[str]]:
    """Yield the parts in lists of about `BATCH_LETTERS` letters."""
    batch, letters = [], 0
    for part in parts:
        batch.append(part)
        letters += len(part)
        if letters >= BATCH_LETTERS:
            yield batch
            batch, letters = [], 0
    if batch:
        yield batch
