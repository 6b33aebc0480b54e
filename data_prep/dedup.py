"""Exact duplicates, by content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def content_hash(turns: Sequence[str]) -> bytes:
    """16 bytes that depend on the turns and where they begin, and on nothing else."""
    digest = hashlib.blake2b(digest_size=16)
    for turn in turns:
        data = turn.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "little"))
        digest.update(data)
    return digest.digest()


class Seen:
    """Remembers content hashes; `add` says whether a hash is new."""

    def __init__(self) -> None:
        self._hashes: set[bytes] = set()

    def add(self, key: bytes) -> bool:
        before = len(self._hashes)
        self._hashes.add(key)
        return len(self._hashes) > before
