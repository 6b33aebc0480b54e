"""Content hash of a dialogue, which decides whether two dialogues are equal and which split a dialogue belongs to."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np

SPLITS = ("test", "valid", "train")
"""Splits in order of precedence: a dialogue that is in several splits is kept only in the first of them."""


def content_hash(turns: Sequence[str]) -> bytes:
    """Return 16 bytes that depend only on the turns and where they begin."""
    parts = []
    for turn in turns:
        data = turn.encode("utf-8", "surrogatepass")
        parts.append(len(data).to_bytes(8, "little"))
        parts.append(data)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


def are_valid(heads: np.ndarray, valid_share: float) -> np.ndarray:
    """Return which dialogues belong to the validation split: those with the smallest hashes.

    Args:
        heads: First 8 bytes of each content hash as a little-endian number, uint64 `[N]`.
        valid_share: Approximate share of the split, 0 to 1.

    Returns:
        bool `[N]`.
    """
    if not valid_share:
        return np.zeros(len(heads), bool)
    return heads < np.uint64(min(math.ceil(valid_share * 2**64), 2**64 - 1))
