"""Spans of a folded text: which of them contain others, and which parts of a phrase follow each other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from chatbot.safety.folding import CLAUSE, SENTENCE, Folded

GAP, LATIN_GAP = 8, 32
"""Maximum number of letters that `*` matches: in general, and if all of them are Latin."""
SPEAKING = frozenset("我想要")
"""Characters with which people say what they want: `*` in a harmless phrase does not match them, and a whole message
that contains one is not a title."""
BULK_SPANS = 1000
"""More spans are joined in bulk, which is faster by a factor of five; the overhead is that of about 500 spans."""
_SPEAKING = sorted(map(ord, SPEAKING))
Span = tuple[int, int]


class Cover:
    """Spans of a text, searched in logarithmic time for one that covers another span: a message can have thousands.

    Args:
        spans: int `[N, 2]` or a list of spans.
    """

    def __init__(self, spans: Sequence[Span] | np.ndarray):
        ordered = np.array(spans, np.int64).reshape(-1, 2)
        ordered = ordered[ordered[:, 0].argsort(kind="stable")]
        self._starts = ordered[:, 0].tolist()
        self._furthest = [-1, *np.maximum.accumulate(ordered[:, 1]).tolist()]

    def holds(self, span: Span) -> bool:
        """Whether one of the spans contains `span`."""
        return self._furthest[bisect_right(self._starts, span[0])] >= span[1]

    def holds_more_than(self, span: Span) -> bool:
        """Whether one of the spans contains `span` and is longer than it."""
        longer_before = self._furthest[bisect_left(self._starts, span[0])] >= span[1]
        return longer_before or self._furthest[bisect_right(self._starts, span[0])] > span[1]


class Joiner:
    """Joins the spans of the parts of phrases in a folded text: a part follows another at most `GAP` letters later.

    Args:
        folded: The text.
    """

    def __init__(self, folded: Folded):
        self.folded = folded
        self._furthest: dict[bool, np.ndarray] = {}

    def furthest(self, is_harmless: bool) -> np.ndarray:
        """Return, for each index where a part ends, the last index where the next may begin, int64 `[N + 1]`."""
        if is_harmless not in self._furthest:
            breaks = np.array(self.folded.breaks)
            codes = np.frombuffer(self.folded.text.encode("utf-32-le"), np.uint32)
            ends = np.arange(len(breaks))
            last = np.maximum(ends + GAP, np.minimum(ends + LATIN_GAP, _next(codes > 127)))
            last = np.minimum(last, _next(breaks[:-1] >= (CLAUSE if is_harmless else SENTENCE)) - 1)
            if is_harmless:
                last = np.minimum(last, _next(np.isin(codes, _SPEAKING)))
            self._furthest[is_harmless] = last
        return self._furthest[is_harmless]

    def joined(self, parts: Sequence[Sequence[Span]], is_harmless: bool) -> Sequence[Span]:
        """Return the spans of whole phrases, given the spans of their parts.

        If several spans of a harmless phrase have the same end, only the longest is returned: it contains the others.
        """
        if len(parts) == 1:
            return parts[0]
        if max(map(len, parts)) > BULK_SPANS:
            return self._joined_in_bulk(parts, is_harmless)
        furthest = self.furthest(is_harmless)
        spans = set(parts[0])
        for part in parts[1:]:
            following = sorted(set(part))
            begins = [start for start, _ in following]
            joined = {
                (start, following[at][1])
                for start, end in spans
                for at in range(bisect_left(begins, end), bisect_right(begins, furthest[end]))
            }
            spans = _longest(joined) if is_harmless else joined
        return sorted(spans)

    def _joined_in_bulk(self, parts: Sequence[Sequence[Span]], is_harmless: bool) -> list[Span]:
        """Do the same as `joined` by NumPy operations on all spans at once."""
        arrays = [np.fromiter((at for span in part for at in span), np.int64).reshape(-1, 2) for part in parts]
        furthest, size = self.furthest(is_harmless), len(self.folded.breaks)
        starts, ends = arrays[0].T
        for array in arrays[1:]:
            begins, finishes = array[array[:, 0].argsort(kind="stable")].T
            first = begins.searchsorted(ends)
            counts = np.maximum(begins.searchsorted(furthest[ends], "right") - first, 0)
            at = np.repeat(first - counts.cumsum() + counts, counts) + np.arange(counts.sum())
            starts, ends = np.repeat(starts, counts), finishes[at]
            keys = np.sort(ends * size + starts)
            groups = keys // size if is_harmless else keys
            keys = keys[np.concatenate(([True], groups[1:] != groups[:-1]))[: len(keys)]]
            starts, ends = keys % size, keys // size
        return list(zip(starts.tolist(), ends.tolist(), strict=True))


def _longest(spans: set[Span]) -> set[Span]:
    """Return, for each end, the longest of the spans that have this end."""
    starts: defaultdict[int, list[int]] = defaultdict(list)
    for start, end in spans:
        starts[end].append(start)
    return {(min(known), end) for end, known in starts.items()}


def _next(marks: np.ndarray) -> np.ndarray:
    """Return for each index of an array, and for its end, the next index with a mark, or the length of the array.

    Args:
        marks: bool `[N]`.

    Returns:
        int64 `[N + 1]`.
    """
    size = len(marks)
    following = np.append(np.where(marks, np.arange(size), size), size)
    return np.minimum.accumulate(following[::-1])[::-1]
