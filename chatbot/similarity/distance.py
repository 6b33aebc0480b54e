"""How near two texts are in meaning: Word Mover's and Word Rotator's Distance over token vectors, with their bounds.

Both are optimal transport (苏剑林, kexue.fm/archives/7388): texts are bags of token vectors w_i with masses p_i, and

    distance = min over gamma >= 0 of sum_ij gamma_ij d_ij,     rows of gamma sum to p, columns to q.

* WMD (Kusner et al. 2015): p_i = count / n, d_ij = |w_i - w'_j|. A metric between bags.
* WRD (Yokoi et al., arXiv 2004.15003): p_i = |w_i| count / Z, d_ij = 1 - cos(w_i, w'_j) in [0, 2]. No metric: 1 - cos
  breaks the triangle inequality.

A text without a token that has a vector is at 0 from another such text and at 1 from any other. Lower bounds, all
cheaper than a solution and used by `nearest` to do with few of them:

* centroids: |sum p_i w_i - sum q_j w'_j| <= WMD;  ½ |sum p_i u_i - sum q_j u'_j|² <= WRD with u = w / |w|;
* relaxed: max(sum_i p_i min_j d_ij, sum_j q_j min_i d_ij) <= the optimum, for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np

Kind = Literal["wmd", "wrd"]
_ROUNDING = 1e-9
"""How much a bound may be above what it bounds."""


@dataclass(frozen=True)
class Bag:
    """A text for one kind of distance; N different tokens that have a vector.

    Attributes:
        points: float64 `[N, D]`: vectors for WMD, directions for WRD.
        masses: float64 `[N]`, their sum is 1.
    """

    points: np.ndarray
    masses: np.ndarray

    def __len__(self) -> int:
        return len(self.masses)

    @property
    def centroid(self) -> np.ndarray:
        """float64 `[D]`."""
        return self.masses @ self.points


def costs(a: Bag, b: Bag, kind: Kind) -> np.ndarray:
    """d_ij, float64 `[N, M]`."""
    products = a.points @ b.points.T
    if kind == "wrd":
        return np.clip(1 - products, 0, 2)
    sizes = (a.points**2).sum(1)[:, None] + (b.points**2).sum(1)
    squares = sizes - 2 * products
    squares[squares < 1e-13 * sizes] = 0  # what rounding leaves of equal vectors is no distance
    return np.sqrt(squares)


def distance(a: Bag, b: Bag, kind: Kind) -> float:
    """WMD or WRD of two bags made for it."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    return _transport(a.masses, b.masses, costs(a, b, kind))


def _transport(p: np.ndarray, q: np.ndarray, cost: np.ndarray) -> float:
    """Cost of the best transport, by POT's network simplex."""
    import ot

    if len(p) == 1 or len(q) == 1:
        return float(p @ cost @ q)
    return float(ot.emd2(p, q / q.sum() * p.sum(), cost, check_marginals=False))


def relaxed_bound(a: Bag, b: Bag, kind: Kind) -> float:
    """A lower bound of the distance: every token goes to its nearest, in the dearer of the two directions."""
    if not len(a) or not len(b):
        return float(len(a) != len(b))
    cost = costs(a, b, kind)
    return float(max(a.masses @ cost.min(1), b.masses @ cost.min(0)))


def centroid_bound(a: np.ndarray, b: np.ndarray, kind: Kind) -> np.ndarray:
    """A lower bound of the distance, from centroids `[..., D]`, of the shape that is left."""
    squares = ((a - b) ** 2).sum(-1)
    return squares / 2 if kind == "wrd" else np.sqrt(squares)
