"""Buckets: the dialogues of all blocks with the same bucket number, each once and with its split."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.corpus.content_hash import SPLITS, are_valid
from data_prep.stages.arrow_files import concatenate, keys_of, open_buckets
from data_prep.stages.block_id import BlockId
from data_prep.stages.losses import DUPLICATE, LEAKS


@dataclass(frozen=True)
class Bucket:
    """Dialogues of a bucket, each once.

    Attributes:
        rows: The dialogues, with the columns of `arrow_files.SCHEMA`.
        rank: Index of each dialogue's split in `SPLITS`, int64 `[N]`.
        dropped: Further copies of these dialogues.
        drop_reasons: Why each copy is dropped.
    """

    rows: pa.RecordBatch
    rank: np.ndarray
    dropped: pa.RecordBatch
    drop_reasons: list[str]


def read_bucket(folder: Path, blocks: Sequence[BlockId], bucket: int, valid_share: float) -> Bucket:
    """Gather a bucket from all blocks; of equal dialogues the first held-out one is kept, or else the first one.

    Args:
        folder: The work folder.
        blocks: All blocks.
        bucket: Index of the bucket.
        valid_share: Share of the train dialogues that is held out, 0 to 1.
    """
    rows, rank = _read_rows(folder, blocks, bucket)
    keys = keys_of(rows)
    train, valid = SPLITS.index("train"), SPLITS.index("valid")
    rank = np.where((rank == train) & are_valid(keys[:, 0], valid_share), valid, rank)
    origin = rows.column("origin").to_numpy()
    order = np.lexsort((origin, rank, keys[:, 1], keys[:, 0]))  # equal dialogues together, the one to keep first
    is_copy = np.zeros(len(order), bool)
    is_copy[1:] = (keys[order[1:]] == keys[order[:-1]]).all(1)
    first_of_group = np.maximum.accumulate(np.where(is_copy, 0, np.arange(len(order))))
    uniques, copies, originals = order[~is_copy], order[is_copy], order[first_of_group[is_copy]]
    reasons = [
        DUPLICATE if copy_rank == kept_rank else LEAKS[SPLITS[kept_rank]]
        for copy_rank, kept_rank in zip(rank[copies].tolist(), rank[originals].tolist(), strict=True)
    ]
    return Bucket(rows.take(pa.array(uniques)), rank[uniques], rows.take(pa.array(copies)), reasons)


def _read_rows(folder: Path, blocks: Sequence[BlockId], bucket: int) -> tuple[pa.RecordBatch, np.ndarray]:
    """Return all rows of a bucket, and the index in `SPLITS` of the split that their files were given for."""
    batches, ranks = [], [np.zeros(0, np.int64)]
    for block in blocks:
        path = folder / f"{block.name}-cut.arrow"
        path = path if path.exists() else folder / f"{block.name}.arrow"
        batch = open_buckets(path).get_batch(bucket)
        if len(batch):
            batches.append(batch)
            ranks.append(np.full(len(batch), SPLITS.index(block.split)))
    return concatenate(batches), np.concatenate(ranks)
