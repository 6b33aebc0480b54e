"""95 % intervals of metrics, each by the method that fits the metric. All are deterministic."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import lru_cache

import numpy as np

CONFIDENCE = 95
Interval = tuple[float, float]
MAX_CELLS = 2**22
"""Largest number of cells in a table of bootstrap draws."""


@lru_cache(maxsize=4)
def _resampled(count: int, resamples: int, part: int) -> np.ndarray:
    """Return how often each of `count` items is drawn in each bootstrap resample, int64 `[resamples, count]`."""
    return np.random.default_rng(part).multinomial(count, np.full(count, 1 / count), resamples)


def ratio(
    numerators: Sequence[float] | np.ndarray,
    denominators: Sequence[float] | np.ndarray | None = None,
    resamples: int = 1000,
) -> Interval:
    """Return the percentile bootstrap interval (Efron 1979) of sum(numerators) / sum(denominators).

    Args:
        numerators: One number per item.
        denominators: One number per item; None means ones, so that the ratio is the mean.
        resamples: Number of bootstrap resamples of the items.
    """
    above = np.asarray(numerators, np.float64)
    below = np.ones_like(above) if denominators is None else np.asarray(denominators, np.float64)
    rows = max(1, min(resamples, MAX_CELLS // len(above)))
    values = []
    for part, start in enumerate(range(0, resamples, rows)):
        counts = _resampled(len(above), min(rows, resamples - start), part)
        totals = counts @ below
        values.append((counts @ above)[totals > 0] / totals[totals > 0])
    return _central(np.concatenate(values))


def share(count: int, total: int) -> Interval:
    """Return Wilson's score interval of a share (Wilson 1927): 0 of 1,000 does not mean "never"."""
    from scipy.stats import binomtest  # takes half a second to import

    low, high = binomtest(count, total).proportion_ci(confidence_level=CONFIDENCE / 100, method="wilson")
    return (float(low), float(high))


def over_subsets(
    values: Sequence[Sequence], size: int, measure: Callable[[list], float], subsets: int
) -> tuple[float, Interval]:
    """Return mean and interval of a metric that depends on the amount of text, over random subsets of a fixed size.

    A bootstrap is unsuitable: its resamples contain duplicates, which lower metrics of diversity. A mean over m items
    drawn from n without replacement has (n - m) / m times the variance of the mean over all n (delete-d jackknife, Shao
    & Wu 1989). So deviations are multiplied by sqrt(m / (n - m)).

    Args:
        values: Items of each reply, for example its n-grams; replies are drawn whole.
        size: Number of items in a subset, m; at most half of all items.
        measure: Metric of a list of `size` items.
        subsets: Number of subsets.
    """
    random = np.random.default_rng(0)
    measured = []
    for _ in range(subsets):
        items: list = []
        for index in random.permutation(len(values)).tolist():
            items.extend(values[index])
            if len(items) >= size:
                break
        measured.append(measure(items[:size]))
    total, mean = sum(map(len, values)), float(np.mean(measured))
    scale = math.sqrt(size / max(1, total - size))
    return mean, _central(mean + scale * (np.array(measured) - mean))


def _central(values: np.ndarray) -> Interval:
    """Return the interval that holds the middle 95 % of the values."""
    tail = (100 - CONFIDENCE) / 2
    return (float(np.percentile(values, tail)), float(np.percentile(values, 100 - tail)))
