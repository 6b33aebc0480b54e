"""Near-duplicates: MinHash signatures and locality-sensitive hashing (Broder 1997; Leskovec et al., "Mining of Massive
Datasets", chapter 3) over the character trigrams of a dialogue.

A signature has `HASHES` numbers, each the smallest value of one hash function over all trigrams. Two signatures agree
in a number with a probability equal to the Jaccard similarity of the trigram sets, so the share of equal numbers
estimates it (standard error .05 at .8).

Comparing all pairs would take quadratic time. Signatures are cut into `BANDS` bands, and only dialogues that are equal
in a whole band are compared: with similarity s, 4 numbers in a band and 16 bands, a pair is missed with probability (1
- s^4)^16, which is .02 % at .8.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

HASHES = 64
BANDS = 16
SHINGLE = 3
"""Length of a shingle, in characters."""
_BATCH = 4096
_PAIRS_AT_A_TIME = 1 << 16


def signatures(dialogues: Sequence[Sequence[str]]) -> np.ndarray:
    """Return the MinHash signature of each dialogue, uint32 `[N, HASHES]`."""
    batches = [_signatures(dialogues[start : start + _BATCH]) for start in range(0, len(dialogues), _BATCH)]
    return np.concatenate([*batches, np.zeros((0, HASHES), np.uint32)])


def _signatures(dialogues: Sequence[Sequence[str]]) -> np.ndarray:
    shingles, starts = _shingle_hashes(["\n".join(turns).ljust(SHINGLE) for turns in dialogues])
    random = np.random.default_rng(0)
    result = np.empty((len(dialogues), HASHES), np.uint32)
    for column in range(HASHES):  # multiply-shift hashing, with odd factors
        factor, offset = random.integers(1, 1 << 63, 2, dtype=np.uint64) | np.uint64(1)
        result[:, column] = np.minimum.reduceat((shingles * factor + offset) >> np.uint64(32), starts)
    return result


def _shingle_hashes(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return a hash of each trigram of all texts, uint64 `[S]`, and the index of each text's first trigram, `[N]`.

    Args:
        texts: Texts of `SHINGLE` or more characters.
    """
    codes = np.frombuffer("".join(texts).encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    hashes = codes[:-2] * np.uint64(0x9E3779B97F4A7C15) + codes[1:-1] * np.uint64(0xC2B2AE3D27D4EB4F) + codes[2:]
    hashes = (hashes ^ (hashes >> np.uint64(31))) * np.uint64(0xD6E8FEB86659FD93)
    lengths = np.array([len(text) for text in texts])
    ends = np.cumsum(lengths)
    is_within = np.ones(len(codes), bool)  # whether the trigram that begins at a character ends in the same text
    for before_end in range(1, SHINGLE):
        is_within[ends - before_end] = False
    counts = lengths - (SHINGLE - 1)
    return hashes[is_within[: len(hashes)]], np.cumsum(counts) - counts


def near_duplicates(signs: np.ndarray, rank: np.ndarray, threshold: float, held_out_only: bool) -> np.ndarray:
    """Return which rows are near an earlier row that is kept; bool `[N]`.

    Args:
        signs: Signatures, uint32 `[N, HASHES]`; may be mapped into memory.
        rank: Index of each row's split in `SPLITS`, int64 `[N]`, ascending: 0 and 1 are held out and always kept.
        threshold: Minimum share of equal hashes for two rows to be near, 0 to 1.
        held_out_only: Whether to look only for rows near held-out ones, not near each other.
    """
    pairs: set[tuple[int, int]] = set()
    for rows, earlier in _candidate_pairs(signs):
        selected = rank[rows] == 2
        if held_out_only:
            selected &= rank[earlier] < 2
        pairs.update(_near_pairs(signs, rows[selected], earlier[selected], threshold))
    is_removed = np.zeros(len(signs), bool)
    for row, before in sorted(pairs):  # in row order: whether an earlier row is kept is known by then
        is_removed[row] |= not is_removed[before]
    return is_removed


def _candidate_pairs(signs: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (row, earlier row) pairs that agree in a band: each row with the first row of its group and with the
    previous one.

    All pairs of a large group would be too many; two rows of a group are usually near the same rows.
    """
    width = HASHES // BANDS
    for band in range(BANDS):
        numbers = np.ascontiguousarray(signs[:, band * width : (band + 1) * width])
        keys = numbers.view([("low", "<u8"), ("high", "<u8")])[:, 0]  # a band of 4 uint32 is 16 bytes
        order = np.argsort(keys, order=("low", "high"), kind="stable")  # groups of equal bands, rows ascending in each
        continues = np.zeros(len(order), bool)
        continues[1:] = keys[order[1:]] == keys[order[:-1]]
        group_start = np.maximum.accumulate(np.where(continues, 0, np.arange(len(order))))
        members = np.flatnonzero(continues)
        yield order[members], order[group_start[members]]
        yield order[members], order[members - 1]


def _near_pairs(
    signs: np.ndarray, rows: np.ndarray, earlier: np.ndarray, threshold: float
) -> Iterator[tuple[int, int]]:
    """Yield the (row, earlier row) pairs whose signatures agree in a share of `threshold` or more."""
    for start in range(0, len(rows), _PAIRS_AT_A_TIME):
        left, right = rows[start : start + _PAIRS_AT_A_TIME], earlier[start : start + _PAIRS_AT_A_TIME]
        is_near = (signs[left] == signs[right]).mean(1) >= threshold
        yield from zip(left[is_near].tolist(), right[is_near].tolist(), strict=True)
