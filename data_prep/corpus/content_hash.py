"""What makes two dialogues equal: their content hash."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

import numpy as np


def content_hash(turns: Sequence[str]) -> bytes:
    """16 bytes that depend on the turns and where they begin, and on nothing else."""
    parts = []
    for turn in turns:
        data = turn.encode("utf-8", "surrogatepass")
        parts.append(len(data).to_bytes(8, "little"))
        parts.append(data)
    return hashlib.blake2b(b"".join(parts), digest_size=16).digest()


SPLITS = ("test", "valid", "train")
"""In the order in which they claim a dialogue that several have."""


def is_valid(key: bytes, valid_share: float) -> bool:
    """Whether the dialogue with this content hash belongs to the validation split of about `valid_share` (0 to 1)."""
    return int.from_bytes(key[:8], "little") < valid_share * 2**64


def is_valid_key(low: np.ndarray, valid_share: float) -> np.ndarray:
    """`is_valid` for many: the first 8 bytes of each hash as a number, uint64 `[N]`."""
    return low < np.uint64(min(math.ceil(valid_share * 2**64), 2**64 - 1)) if valid_share else np.zeros(len(low), bool)
