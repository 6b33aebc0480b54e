"""Exact nearest neighbours by Word Mover's or Word Rotator's Distance, pruned with lower bounds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatbot.similarity.distance import _ROUNDING, Bag, Kind, centroid_bound, distance, relaxed_bound


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
