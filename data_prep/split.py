"""Which dialogues are held out: decided by content alone, so it never changes when lines are added or reordered."""

from __future__ import annotations


def is_valid(key: bytes, valid_share: float) -> bool:
    """Whether the dialogue with this content hash belongs to the validation split of about `valid_share` (0 to 1)."""
    return int.from_bytes(key[:8], "little") < valid_share * 2**64
