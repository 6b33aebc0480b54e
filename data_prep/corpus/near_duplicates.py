"""Near-duplicates: MinHash signatures and locality-sensitive hashing (Broder 1997; Leskovec et al., "Mining of Massive
Datasets", chapter 3), over the character trigrams of a dialogue.

Two dialogues are near when the share of equal places in their signatures, which estimates the Jaccard similarity of
their trigram sets (standard error .05 at .8), reaches the threshold.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

PLACES = 64
BANDS = 16
"""A pair is looked at when one of 16 bands of 4 places is equal: 99.98 % of pairs with similarity .8."""
SHINGLE = 3
_PRIME = (1 << 61) - 1
_BATCH = 4096


def signatures(dialogues: Sequence[Sequence[str]]) -> np.ndarray:
    """uint32 `[N, PLACES]`, one row a dialogue."""
    rows = [_signatures(dialogues[start : start + _BATCH]) for start in range(0, len(dialogues), _BATCH)]
    return np.concatenate([*rows, np.zeros((0, PLACES), np.uint32)])


def _signatures(dialogues: Sequence[Sequence[str]]) -> np.ndarray:
    texts = ["\n".join(turns).ljust(SHINGLE) for turns in dialogues]
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    lengths = np.array([len(text) for text in texts])
    starts = np.cumsum(lengths) - lengths
    shingles = codes[:-2] * np.uint64(0x9E3779B97F4A7C15) + codes[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + codes[2:]
    shingles = (shingles ^ (shingles >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
    places = np.ones(len(codes), bool)
    for before_end in range(1, SHINGLE):
        places[starts + lengths - before_end] = False  # a trigram does not reach into the next dialogue
    shingles = shingles[np.flatnonzero(places[: len(shingles)])]
    starts = np.cumsum(lengths - SHINGLE + 1) - (lengths - SHINGLE + 1)
    random = np.random.default_rng(0)
    found = np.empty((len(texts), PLACES), np.uint32)
    for place in range(PLACES):  # multiply-shift hashing
        factor, offset = (
            np.uint64(number) for number in random.integers(1, 1 << 63, 2, dtype=np.uint64) | np.uint64(1)
        )
        found[:, place] = np.minimum.reduceat((shingles * factor + offset) >> np.uint64(32), starts)
    return found


def near_duplicates(found: np.ndarray, rank: np.ndarray, threshold: float, held_out_only: bool) -> np.ndarray:
    """Which rows are near one that stays and comes before them; bool `[N]`.

    Args:
        found: Signatures, uint32 `[N, PLACES]`; may be mapped into memory.
        rank: int64 `[N]`: 0 and 1 are held out and never go, 2 may go; rows come in ascending order of it.
        threshold: Share of equal places from which two are near, 0 to 1.
        held_out_only: Look for rows near those held out only, not near each other.
    """
    pairs = set()
    width = PLACES // BANDS
    for band in range(BANDS):
        part = np.ascontiguousarray(found[:, band * width : (band + 1) * width]).view(f"V{4 * width}")[:, 0]
        order = np.argsort(part.view([("a", "<u8"), ("b", "<u8")]), order=("a", "b"), kind="stable")
        same = part[order[1:]] == part[order[:-1]]
        first = np.maximum.accumulate(np.where(np.concatenate([[True], ~same]), np.arange(len(order)), 0))
        for near in (order[first], np.concatenate([order[:1], order[:-1]])):  # the first of the group, the one before
            chosen = np.concatenate([[False], same]) & (rank[order] == 2)
            if held_out_only:
                chosen &= rank[near] < 2
            left, right = near[chosen], order[chosen]
            for start in range(0, len(left), 1 << 16):
                a, b = left[start : start + (1 << 16)], right[start : start + (1 << 16)]
                alike = (found[a] == found[b]).mean(1) >= threshold
                pairs.update(zip(b[alike].tolist(), a[alike].tolist(), strict=True))
    goes = np.zeros(len(found), bool)
    for row, before in sorted(pairs):
        if not goes[before]:
            goes[row] = True
    return goes
