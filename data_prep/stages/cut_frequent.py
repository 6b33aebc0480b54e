"""Stage 2: cut dialogues at turns that occur too often in the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.corpus.frequent_turns import REASONS, FrequentTurns
from data_prep.stages.arrow_files import SCHEMA, PieceWriter, open_buckets, save_buckets, texts_of
from data_prep.stages.clean_block import Unit
from data_prep.stages.losses import Losses


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
