"""Stage 3, if switched on: find near-duplicates over all buckets."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np

from chatbot.storage import write_stream
from data_prep.corpus.near_duplicates import near_duplicates, signatures
from data_prep.stages.arrow_files import keys_of, texts_of
from data_prep.stages.block_id import BlockId
from data_prep.stages.buckets import read_bucket

NEAR_FILE = "near.npy"


def sign_bucket(folder: Path, blocks: Sequence[BlockId], bucket: int, valid_share: float) -> None:
    """Write near-BUCKET.npz: the MinHash signatures, ranks and keys of a bucket; arguments as for `read_bucket`."""
    content = read_bucket(folder, blocks, bucket, valid_share)
    keys, signs = keys_of(content.rows), signatures(texts_of(content.rows))
    path = folder / f"near-{bucket:05}.npz"
    write_stream(path, lambda file: np.savez(file, keys=keys, rank=content.rank, signs=signs))


def find_near(folder: Path, buckets: int, threshold: float, held_out_only: bool) -> None:
    """Write near.npy: the keys of the dialogues that are near another one, uint64 `[N, 2]`, sorted.

    Args:
        folder: The work folder.
        buckets: Number of buckets.
        threshold, held_out_only: See `near_duplicates`.
    """
    parts = [np.load(folder / f"near-{bucket:05}.npz") for bucket in range(buckets)]
    rank = np.concatenate([part["rank"] for part in parts])
    order = np.argsort(rank, kind="stable")
    signs = np.concatenate([part["signs"] for part in parts])[order]
    is_near = near_duplicates(signs, rank[order], threshold, held_out_only)
    keys = np.concatenate([part["keys"] for part in parts])[order][is_near]
    keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    write_stream(folder / NEAR_FILE, lambda file: np.save(file, keys))


@cache
def near_keys(folder: Path) -> frozenset[bytes]:
    """Return the keys that `find_near` wrote; none if the stage is off."""
    path = folder / NEAR_FILE
    return frozenset(key.tobytes() for key in np.load(path)) if path.exists() else frozenset()
