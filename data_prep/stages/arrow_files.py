"""Clean dialogues on their way through a build: Arrow files, a record batch a bucket.

A dialogue's bucket is decided by its content, so equal dialogues meet in one, and each bucket can be worked on alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import xxhash

from chatbot.storage import write_whole
from data_prep.corpus.content_hash import content_hash

SCHEMA = pa.schema(
    {
        "turns": pa.list_(pa.string()),
        "hashes": pa.list_(pa.uint64()),  # of the turns
        "key": pa.binary(16),  # content_hash
        "origin": pa.int64(),  # number of the dialogue it comes from: file and line
        "siblings": pa.int32(),  # pieces that came of that dialogue
        "whole": pa.bool_(),  # whether it is all of it
    }
)
FILE_SHIFT = 40


def origin_of(file: int, number: int) -> int:
    """One number for a record of a file."""
    return file << FILE_SHIFT | number


LONG_CHARACTERS = 12


def turn_hash(turn: str) -> int:
    """64 bits that depend on the text alone; the last one says whether it has `LONG_CHARACTERS` or more."""
    return xxhash.xxh3_64_intdigest(turn.encode()) & ~1 | (len(turn) >= LONG_CHARACTERS)


def keys_of(batch: pa.RecordBatch) -> np.ndarray:
    """Content hashes as two numbers each, uint64 `[N, 2]`."""
    column = batch.column("key")
    if not len(column):
        return np.zeros((0, 2), np.uint64)
    flat = np.frombuffer(column.buffers()[1], dtype="<u8")
    return flat.reshape(-1, 2)[column.offset : column.offset + len(column)]


class PieceWriter:
    """Collects the clean dialogues of a block and writes them by bucket.

    Args:
        buckets: How many there are.
    """

    def __init__(self, buckets: int):
        self._buckets = buckets
        self._rows: list[tuple] = []

    def add(self, turns: Sequence[str], origin: int, siblings: int, whole: bool) -> None:
        hashes = [turn_hash(turn) for turn in turns]
        self._rows.append((turns, hashes, content_hash(turns), origin, siblings, whole))

    def batches(self) -> Iterator[pa.RecordBatch]:
        """One for each bucket, empty where there are no dialogues."""
        columns = zip(*self._rows, strict=True) if self._rows else [[] for _ in SCHEMA]
        arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
        table = pa.RecordBatch.from_arrays(arrays, schema=SCHEMA)
        bucket = (keys_of(table)[:, 1] % self._buckets).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self._buckets + 1))
        for start, stop in pairwise(bounds.tolist()):
            yield table.take(pa.array(order[start:stop]))


def save_buckets(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Writes a batch for each bucket."""

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)

    write_whole(path, write)


def open_buckets(path: Path, columns: Sequence[str] | None = None) -> pa.RecordBatchFileReader:
    """The file mapped into memory; `get_batch(bucket)` gives the dialogues of a bucket."""
    chosen = None if columns is None else [SCHEMA.get_field_index(name) for name in columns]
    return pa.ipc.open_file(pa.memory_map(str(path)), options=pa.ipc.IpcReadOptions(included_fields=chosen))


def texts_of(column: pa.ListArray) -> list[list[str]]:
    """Turns of each dialogue of the column `turns`."""
    flat = column.flatten().to_numpy(zero_copy_only=False).tolist()
    bounds = column.offsets.to_numpy()
    bounds = (bounds - bounds[:1]).tolist()
    return [flat[start:stop] for start, stop in pairwise(bounds)]
