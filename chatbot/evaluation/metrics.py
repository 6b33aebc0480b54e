"""Metrics of generated replies; all are pure functions of texts or tokens."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Sequence


def ngrams(items: Sequence[Hashable], n: int) -> list[tuple]:
    """All n-grams, in order; fewer than n items have none."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def distinct_n(replies: Iterable[Sequence[Hashable]], n: int) -> float:
    """Dist-n (Li et al., arXiv 1510.03055): distinct / total n-grams over the whole set. It falls with the set's size."""
    grams = [gram for reply in replies for gram in ngrams(reply, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_n(reply: Sequence[Hashable], n: int) -> float:
    """rep-n (Welleck et al., arXiv 1908.04319): 1 - distinct / total n-grams of one reply; 0 when it is too short."""
    grams = ngrams(reply, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def unfinished_share(lengths: Iterable[int], ended: Iterable[bool], limit: int) -> float:
    """r_L (Welleck et al., arXiv 2002.02492): share of decodes without an end of turn after `limit` tokens.

    Args:
        lengths: Tokens of each reply, end of turn not counted.
        ended: Whether it ended by itself; False when it was cut off, at L or before.
        limit: L.
    """
    unfinished = [length >= limit or not end for length, end in zip(lengths, ended, strict=True)]
    return sum(unfinished) / len(unfinished) if unfinished else 0.0


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
