"""What worker processes do with a block: it is cleaned, and its frequent turns are cut.

Each step reads files of the work folder and writes whole files to it, and what it writes depends on its arguments
alone; a file that is there is not made again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.clean import ONE_TURN, Cleaner, CleanSettings, Ledger
from data_prep.frequency import REASONS, FrequentTurns
from data_prep.pieces import FILE_SHIFT, SCHEMA, PieceWriter, open_buckets, origin_of, save_buckets, texts_of
from data_prep.sources import Block, records
from data_prep.work import write_json, write_stream, write_whole

DUPLICATE, NEAR = "duplicate", "near_duplicate"
LEAKS = {"test": "also_in_test", "valid": "also_in_valid"}
LOSSES = (*REASONS, DUPLICATE, NEAR, *LEAKS.values())
"""Reasons for which a dialogue that is clean does not stay as it is."""


@dataclass(frozen=True)
class Unit:
    """A block on its way.

    Attributes:
        place: Number of the input file, and of the block in it.
        source: Name of the input file.
        split: `train`, or the split that the file was given for.
    """

    place: tuple[int, int]
    source: str
    split: str

    @property
    def file(self) -> int:
        return self.place[0]

    @property
    def name(self) -> str:
        """Of its files."""
        return "unit-{:05}-{:06}".format(*self.place)


# --- cleaning ---


@cache
def _cleaner(settings: CleanSettings) -> Cleaner:
    return Cleaner(settings)


def clean_block(folder: Path, unit: Unit, block: Block, settings: CleanSettings, buckets: int) -> None:
    """Writes NAME.arrow, the clean dialogues; NAME.gz, what went; NAME.json, the counts, which comes last."""
    cleaner, ledger, writer = _cleaner(settings), Ledger(), PieceWriter(buckets)
    gone = []
    for number, turns, reason in records(block):
        entry = {"file": unit.source, "record": number}
        if turns is None:
            ledger.drop(reason)
            gone.append({**entry, "reason": reason})
            continue
        pieces, dirty = cleaner.pieces(turns, ledger)
        gone += [{**entry, "turn": index, "reason": why, "text": turns[index][:200]} for index, why in dirty]
        if not pieces and not dirty:
            gone.append({**entry, "reason": ONE_TURN})
        origin = origin_of(unit.file, number)
        for piece in pieces:
            writer.add(piece, origin, len(pieces), not dirty)
    save_buckets(folder / f"{unit.name}.arrow", writer.batches())
    write_gone(folder / f"{unit.name}.gz", gone)
    write_json(folder / f"{unit.name}.json", ledger.to_json())


def write_gone(path: Path, gone: Iterable[dict]) -> None:
    """A line for each turn and dialogue that went, gzip without a time stamp; such files can be joined end to end."""
    data = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in gone).encode("utf-8", "replace")
    write_whole(path, lambda part: part.write_bytes(gzip.compress(data, 3, mtime=0) if data else b""))


# --- frequent turns ---


def turn_hashes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all turns of a unit, uint64 `[T]`, and where dialogues begin, int64 `[dialogues + 1]`."""
    file = open_buckets(path, ["hashes"])
    columns = [file.get_batch(index).column(0) for index in range(file.num_record_batches)]
    turns = [column.flatten().to_numpy() for column in columns]
    lengths = [np.diff(column.offsets.to_numpy()) for column in columns if len(column)]
    starts = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int32)]))])
    return np.concatenate([*turns, np.zeros(0, np.uint64)]), starts.astype(np.int64)


@cache
def read_frequent(path: Path) -> FrequentTurns:
    return FrequentTurns.load(path)


def cut_unit(folder: Path, unit: Unit, table: Path, buckets: int) -> None:
    """Writes NAME-cut.arrow, the unit without the turns that are too frequent, with its losses beside it."""
    frequent, writer = read_frequent(table), PieceWriter(buckets)
    file = open_buckets(folder / f"{unit.name}.arrow")
    stay, losses = [], Losses(unit)
    for bucket in range(buckets):
        batch = file.get_batch(bucket)
        column = batch.column("hashes")
        starts = column.offsets.to_numpy().astype(np.int64) if len(column) else np.zeros(1, np.int64)
        reasons = frequent.dirty(column.flatten().to_numpy(), starts - starts[0])
        dirty = np.flatnonzero(np.add.reduceat(reasons >= 0, starts[:-1] - starts[0])) if len(column) else []
        rows = batch.take(pa.array(dirty, pa.int64()))
        for turns, place, *about in zip(
            texts_of(rows.column("turns")),
            dirty,
            *(rows.column(name).to_pylist() for name in SCHEMA.names[3:]),
            strict=True,
        ):
            start = starts[place] - starts[0]
            why = reasons[start : start + len(turns)].tolist()
            pieces: list[list[str]] = [[]]
            for turn, reason in zip(turns, why, strict=True):
                if reason < 0:
                    pieces[-1].append(turn)
                else:
                    pieces.append([])
                    losses.tell(about[0], REASONS[reason], turn)
            pieces = [piece for piece in pieces if len(piece) > 1]
            losses.count(*about, len(pieces) - 1, REASONS[max(why)])
            for piece in pieces:
                writer.add(piece, about[0], about[1], False)
        is_clean = np.ones(len(batch), bool)
        is_clean[dirty] = False
        stay.append(is_clean)
    new = writer.batches()
    save_buckets(
        folder / f"{unit.name}-cut.arrow",
        (joined([file.get_batch(bucket).filter(pa.array(stay[bucket])), next(new)]) for bucket in range(buckets)),
    )
    losses.save(folder / f"{unit.name}-cut")


def joined(batches: Sequence[pa.RecordBatch]) -> pa.RecordBatch:
    return pa.concat_batches(batches) if batches else pa.RecordBatch.from_arrays([[]] * len(SCHEMA), schema=SCHEMA)


class Losses:
    """Clean dialogues that do not stay as they are, with what they come from, for the final count.

    Args:
        units: That of the dialogues, or all, by number of the file.
    """

    def __init__(self, *units: Unit):
        self._source = {unit.file: unit.source for unit in units}
        self._rows: list[tuple[int, int, bool, int, int]] = []
        self._told: list[dict] = []

    def count(self, origin: int, siblings: int, whole: bool, more: int, reason: str) -> None:
        """Of the `siblings` pieces of a dialogue there are now `more` more."""
        self._rows.append((origin, siblings, whole, more, LOSSES.index(reason)))

    def tell(self, origin: int, reason: str, text: str | Sequence[str]) -> None:
        file, record = origin >> FILE_SHIFT, origin & ((1 << FILE_SHIFT) - 1)
        self._told.append({"file": self._source[file], "record": record, "reason": reason, "text": text})

    def save(self, path: Path) -> None:
        """Writes PATH.gz and, last, PATH.npy, int64 `[N, 5]`."""
        write_gone(path.with_name(f"{path.name}.gz"), self._told)
        rows = np.array(self._rows, np.int64).reshape(-1, 5)
        write_stream(path.with_name(f"{path.name}.npy"), lambda file: np.save(file, rows))


def final_count(rows: np.ndarray, ledger: Ledger) -> None:
    """Moves the dialogues with losses in the ledger to what they are in the end.

    Args:
        rows: Of all `Losses`, int64 `[N, 5]`, in the order of the steps.
        ledger: That of cleaning.
    """
    if not len(rows):
        return
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    starts = np.flatnonzero(np.diff(rows[:, 0], prepend=-1))
    left = rows[starts, 1] + np.add.reduceat(rows[:, 3], starts)
    was_whole = np.maximum.reduceat(rows[:, 2], starts).astype(bool)
    is_gone = left <= 0
    counts = ledger.dialogues
    counts["kept_whole"] -= int(was_whole.sum())
    counts["split"] += int((was_whole & ~is_gone).sum()) - int((~was_whole & is_gone).sum())
    counts["dropped"] += int(is_gone.sum())
    for reason, count in enumerate(np.bincount(rows[starts, 4][is_gone], minlength=len(LOSSES)).tolist()):
        if count:
            ledger.dropped[LOSSES[reason]] += count
    ledger.pieces += int(rows[:, 3].sum())
