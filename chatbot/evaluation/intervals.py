"""How sure a number is: 95 % intervals, each by the method its number allows. All are deterministic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

CONFIDENCE = 95
Interval = tuple[float, float]
CELLS = 2**22
"""Numbers of a table of draws that exist at a time."""


@lru_cache(maxsize=4)
def _resampled(count: int, resamples: int, part: int) -> np.ndarray:
    """How often each of `count` things is drawn in each bootstrap resample, int64 `[resamples, count]`."""
    return np.random.default_rng(part).multinomial(count, np.full(count, 1 / count), resamples)


def ratio(above: Sequence[float], below: Sequence[float] | None = None, resamples: int = 1000) -> Interval:
    """Percentile bootstrap (Efron 1979) of sum(above) / sum(below) over the things; without `below` of the mean."""
    above = np.asarray(above, np.float64)
    below = np.ones_like(above) if below is None else np.asarray(below, np.float64)
    rows = max(1, min(resamples, CELLS // len(above)))
    values = []
    for part, start in enumerate(range(0, resamples, rows)):
        drawn = _resampled(len(above), min(rows, resamples - start), part)
        totals = drawn @ below
        values.append((drawn @ above)[totals > 0] / totals[totals > 0])
    return _middle(np.concatenate(values))


def share(count: int, total: int) -> Interval:
    """Wilson's score interval of a share (Wilson 1927): none of 1,000 is not "certainly none"."""
    z = 1.959963984540054
    p, n = count / total, total
    centre, spread = p + z * z / (2 * n), z * math.sqrt(p * (1 - p) / n + z * z / (4 * n * n))
    scale = 1 + z * z / n
    low, high = (centre - spread) / scale, (centre + spread) / scale
    return (low if count else 0.0, high if count < total else 1.0)


def over_subsets(
    values: Sequence[Sequence], size: int, measure: Callable[[list], float], subsets: int
) -> tuple[float, Interval]:
    """A number that depends on how much text there is, at a fixed size: mean and middle over random subsets.

    Bootstrap resamples hold duplicates, which such numbers would see. Of m items drawn from n without replacement a mean
    has (n - m) / m times the variance that it has over all n (delete-d jackknife: Shao & Wu 1989), so deviations are
    scaled by sqrt(m / (n - m)).

    Args:
        values: The items of each reply, such as its n-grams.
        size: Items of a subset, m; at most half of all.
        measure: Of a list of `size` items.
        subsets: How many.
    """
    random = np.random.default_rng(0)
    found = []
    for _ in range(subsets):
        items: list = []
        for index in random.permutation(len(values)).tolist():
            items.extend(values[index])
            if len(items) >= size:
                break
        found.append(measure(items[:size]))
    total, mean = sum(map(len, values)), float(np.mean(found))
    scale = math.sqrt(size / max(1, total - size))
    return mean, _middle(mean + scale * (np.array(found) - mean))


def _middle(values: np.ndarray) -> Interval:
    tail = (100 - CONFIDENCE) / 2
    return (float(np.percentile(values, tail)), float(np.percentile(values, 100 - tail)))
