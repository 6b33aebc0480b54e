"""Clean dialogues on their way through a build: Arrow files with one record batch per bucket.

The bucket of a dialogue is decided by its content, so equal dialogues meet in one bucket, and each bucket can be
processed alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise, starmap
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pyarrow as pa
import xxhash

from chatbot.storage import write_whole
from data_prep.corpus.content_hash import content_hash

SCHEMA = pa.schema(
    {
        "turns": pa.list_(pa.string()),
        "hashes": pa.list_(pa.uint64()),  # turn_hash of each turn
        "key": pa.binary(16),  # content_hash
        "origin": pa.int64(),  # see Provenance
        "siblings": pa.int32(),
        "whole": pa.bool_(),
    }
)
FILE_SHIFT = 40
"""Number of low bits of an origin that hold the record; the higher bits hold the index of the file."""
TURNS_AT_A_TIME = 1 << 14
LONG_CHARACTERS = 12
"""Minimum length of a long turn, in characters."""


class Provenance(NamedTuple):
    """Raw dialogue that a piece was cut from.

    Attributes:
        origin: Input file and record of the raw dialogue as one number; see `origin_of`.
        siblings: Number of pieces into which cleaning cut the raw dialogue.
        whole: Whether the piece is the whole raw dialogue.
    """

    origin: int
    siblings: int
    whole: bool


def origin_of(file: int, record: int) -> int:
    """Return one number for a record of a file."""
    return file << FILE_SHIFT | record


def file_and_record(origin: int) -> tuple[int, int]:
    """Return the file and the record for which `origin_of` returned this number."""
    return origin >> FILE_SHIFT, origin & ((1 << FILE_SHIFT) - 1)


def turn_hash(turn: str) -> int:
    """Return 64 bits that depend on the text alone; the last bit says whether it has `LONG_CHARACTERS` or more."""
    return xxhash.xxh3_64_intdigest(turn.encode()) & ~1 | (len(turn) >= LONG_CHARACTERS)


class PieceCollector:
    """Collects clean dialogues and sorts them into buckets.

    Args:
        buckets: Number of buckets.
    """

    def __init__(self, buckets: int):
        self._buckets = buckets
        self._rows: list[tuple] = []
        self._turns = 0
        self._batches: list[pa.RecordBatch] = []

    def add(self, turns: Sequence[str], provenance: Provenance) -> None:
        hashes = [turn_hash(turn) for turn in turns]
        self._rows.append((turns, hashes, content_hash(turns), *provenance))
        self._turns += len(turns)
        if self._turns >= TURNS_AT_A_TIME:
            self._convert()

    def _convert(self) -> None:
        """Convert the rows to Arrow, which takes a tenth of the memory of short Python strings."""
        if self._rows:
            columns = zip(*self._rows, strict=True)
            arrays = [pa.array(column, field.type) for column, field in zip(columns, SCHEMA, strict=True)]
            self._batches.append(pa.RecordBatch.from_arrays(arrays, schema=SCHEMA))
        self._rows, self._turns = [], 0

    def batches(self) -> Iterator[pa.RecordBatch]:
        """Yield the dialogues of each bucket, in the order of the buckets."""
        self._convert()
        table = concatenate(self._batches)
        bucket = (keys_of(table)[:, 1] % self._buckets).astype(np.int64)
        order = np.argsort(bucket, kind="stable")
        bounds = np.searchsorted(bucket[order], np.arange(self._buckets + 1))
        for start, stop in pairwise(bounds.tolist()):
            yield table.take(pa.array(order[start:stop]))


def save_buckets(path: Path, batches: Iterable[pa.RecordBatch]) -> None:
    """Write a file with one batch for each bucket."""

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_file(file, SCHEMA) as writer:
            for batch in batches:
                writer.write_batch(batch)

    write_whole(path, write)


def open_buckets(path: Path, columns: Sequence[str] | None = None) -> pa.RecordBatchFileReader:
    """Return the file, mapped into memory; `get_batch(bucket)` returns the dialogues of a bucket.

    Args:
        path: File written by `save_buckets`.
        columns: Names of the columns to read; None reads all.
    """
    fields = None if columns is None else [SCHEMA.get_field_index(name) for name in columns]
    return pa.ipc.open_file(pa.memory_map(str(path)), options=pa.ipc.IpcReadOptions(included_fields=fields))


def concatenate(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    """Return one batch with the rows of all batches."""
    return pa.concat_batches(batches) if batches else pa.RecordBatch.from_arrays([[]] * len(SCHEMA), schema=SCHEMA)


# --- columns of a batch ---


def texts_of(batch: pa.RecordBatch) -> list[list[str]]:
    """Return the turns of each dialogue."""
    column = batch.column("turns")
    flat = column.flatten().to_numpy(zero_copy_only=False).tolist()
    return [flat[start:stop] for start, stop in pairwise(turn_starts(batch).tolist())]


def turn_starts(batch: pa.RecordBatch) -> np.ndarray:
    """Return the index of the first turn of each dialogue, counted over the batch, and the number of turns; `[N + 1]`.

    A batch can be a slice of a larger one, whose offsets do not begin at 0.
    """
    if not len(batch):
        return np.zeros(1, np.int64)
    offsets = batch.column("turns" if "turns" in batch.schema.names else "hashes").offsets.to_numpy().astype(np.int64)
    return offsets - offsets[0]


def hashes_of(batch: pa.RecordBatch) -> np.ndarray:
    """Return the hashes of all turns, one dialogue after the other, uint64 `[T]`."""
    return batch.column("hashes").flatten().to_numpy()


def keys_of(batch: pa.RecordBatch) -> np.ndarray:
    """Return the content hashes as two numbers each, uint64 `[N, 2]`."""
    column = batch.column("key")
    if not len(column):
        return np.zeros((0, 2), np.uint64)
    flat = np.frombuffer(column.buffers()[1], dtype="<u8")
    return flat.reshape(-1, 2)[column.offset : column.offset + len(column)]


def provenances_of(batch: pa.RecordBatch) -> list[Provenance]:
    """Return the provenance of each dialogue."""
    columns = [batch.column(name).to_pylist() for name in Provenance._fields]
    return list(starmap(Provenance, zip(*columns, strict=True)))
