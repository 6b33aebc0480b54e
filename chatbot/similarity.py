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

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from chatbot.errors import CheckpointError, first_line

VECTORS_FILE = "vectors.safetensors"
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


class TokenVectors:
    """A vector for each token.

    Args:
        vectors: `[V, D]`; a token without a vector has zeros.
    """

    def __init__(self, vectors: np.ndarray):
        self.vectors = np.ascontiguousarray(vectors, np.float32)
        self.norms = np.linalg.norm(self.vectors.astype(np.float64), axis=1)

    @classmethod
    def load(cls, folder: str | Path, vocab_size: int) -> TokenVectors:
        """Reads vectors.safetensors of a checkpoint folder whose tokenizer has `vocab_size` tokens.

        Raises:
            CheckpointError: The file is missing, damaged or of another tokenizer.
        """
        from safetensors.numpy import load_file

        path = Path(folder) / VECTORS_FILE
        if not path.is_file():
            raise CheckpointError(f"There is no {VECTORS_FILE} in {folder}; make it with python -m chatbot.vectors.")
        try:
            vectors = load_file(path)["vectors"]
            if vectors.ndim != 2 or len(vectors) != vocab_size or not np.isfinite(vectors).all():
                raise ValueError(f"it does not hold finite vectors of {vocab_size} tokens")
            return cls(vectors)
        except Exception as error:  # safetensors raises its own kinds
            raise CheckpointError(f"{path} cannot be read ({first_line(error)}); copy or make it again.") from None

    def bag(self, token_ids: Sequence[int], kind: Kind) -> Bag:
        """Tokens of a text with their masses; equal tokens are one, tokens without a vector none."""
        ids, counts = np.unique(np.asarray(token_ids, np.int64), return_counts=True)
        has_vector = self.norms[ids] > 0
        ids, counts = ids[has_vector], counts[has_vector].astype(np.float64)
        points = self.vectors[ids].astype(np.float64)
        if kind == "wrd":
            counts *= self.norms[ids]
            points /= self.norms[ids, None]
        return Bag(points, counts / counts.sum() if len(ids) else counts)

    def mean(self, token_ids: Sequence[int]) -> np.ndarray:
        """Mean vector of a text, float64 `[D]`: "embedding average" (Liu et al., arXiv 1603.08023)."""
        return (
            self.vectors[np.asarray(token_ids, np.int64)].mean(0, dtype=np.float64)
            if len(token_ids)
            else np.zeros(self.vectors.shape[1])
        )


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


@dataclass(frozen=True)
class Nearest:
    """What `nearest` found.

    Attributes:
        places: Of the nearest candidates, the nearest first; of equally near ones the first.
        distances: Theirs.
        solved: How many distances had to be computed.
    """

    places: list[int]
    distances: list[float]
    solved: int


def nearest(query: Bag, candidates: Sequence[Bag], count: int, kind: Kind) -> Nearest:
    """The `count` nearest candidates, exactly; a candidate whose bound is no nearer than all of them is left out.

    Candidates are taken in the order of the cheap bound (Kusner et al. 2015, section 4, "prefetch and prune").
    """
    if not len(query) or not candidates:
        found = sorted((distance(query, bag, kind), place) for place, bag in enumerate(candidates))[:count]
        return Nearest([place for _, place in found], [value for value, _ in found], 0)
    is_empty = np.array([not len(bag) for bag in candidates])
    size = query.points.shape[1]
    centroids = np.stack([bag.centroid if len(bag) else np.zeros(size) for bag in candidates])
    cheap = np.where(is_empty, 1.0, centroid_bound(query.centroid, centroids, kind))
    best: list[tuple[float, int]] = []
    solved = 0
    for place in np.argsort(cheap, kind="stable").tolist():
        worst = best[-1][0] + _ROUNDING if len(best) == count else np.inf
        if cheap[place] > worst:
            break
        if relaxed_bound(query, candidates[place], kind) > worst:
            continue
        solved += not is_empty[place]
        best.append((distance(query, candidates[place], kind), place))
        best = sorted(best)[:count]
    return Nearest([place for _, place in best], [value for value, _ in best], solved)
