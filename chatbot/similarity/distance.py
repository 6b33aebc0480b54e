"""Distances of two texts in meaning: Word Mover's Distance and Word Rotator's Distance over token vectors.

Both are optimal transport (苏剑林, kexue.fm/archives/7388): texts are bags of token vectors w_i with masses p_i, and

    distance = min over gamma >= 0 of sum_ij gamma_ij d_ij,     rows of gamma sum to p, columns to q.

* WMD (Kusner et al. 2015): p_i = count / n, d_ij = |w_i - w'_j|. A metric between bags.
* WRD (Yokoi et al., arXiv 2004.15003): p_i = |w_i| count / Z, d_ij = 1 - cos(w_i, w'_j) in [0, 2]. Not a metric:
  1 - cos violates the triangle inequality.

By convention two texts without token vectors have distance 0, and one such text has distance 1 to any other text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["wmd", "wrd"]

NEAR = 1e-4
"""Squared distances below this share of |w|² + |w'|² are summed from the differences of the vectors: |w|² + |w'|² - 2 w·w'
would lose more than four of its sixteen digits there, and all of them if all vectors lie far from the origin."""


@dataclass(frozen=True)
class Bag:
    """Distinct tokens of a text that have a vector, prepared for one kind of distance.

    Attributes:
        points: Vectors (WMD) or unit vectors (WRD), float64 `[N, D]`.
        masses: Masses, float64 `[N]`; their sum is 1.
    """

    points: np.ndarray
    masses: np.ndarray

    def __len__(self) -> int:
        return len(self.masses)


def costs(a: Bag, b: Bag, kind: Kind) -> np.ndarray:
    """Return the costs d_ij of moving mass from tokens of `a` to tokens of `b`, float64 `[N, M]`."""
    products = a.points @ b.points.T
    if kind == "wrd":
        return np.clip(1 - products, 0, 2)
    sizes = (a.points**2).sum(1)[:, None] + (b.points**2).sum(1)
    squares = sizes - 2 * products  # |w - w'|² = |w|² + |w'|² - 2 w·w'
    near = squares < NEAR * sizes
    for row in np.flatnonzero(near.any(1)):
        squares[row, near[row]] = ((b.points[near[row]] - a.points[row]) ** 2).sum(1)
    return np.sqrt(squares)


def distance(a: Bag, b: Bag, kind: Kind) -> float:
    """Return the WMD or WRD of two bags; both are prepared for that distance."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    return _transport(a.masses, b.masses, costs(a, b, kind))


def relaxed_distance(a: Bag, b: Bag, kind: Kind) -> float:
    """Return a lower bound of `distance` that does not need the package POT (Kusner et al. 2015, section 4.2).

    Each token is moved to the nearest token of the other bag; the result is the larger cost of the two directions.
    """
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    cost = costs(a, b, kind)
    return float(max(a.masses @ cost.min(1), b.masses @ cost.min(0)))


def _transport(p: np.ndarray, q: np.ndarray, cost: np.ndarray) -> float:
    """Return the cost of the optimal transport from masses p to masses q, by POT's network simplex."""
    import ot

    if len(p) == 1 or len(q) == 1:  # only one plan
        return float(p @ cost @ q)
    return float(ot.emd2(p, q / q.sum() * p.sum(), cost, check_marginals=False))
