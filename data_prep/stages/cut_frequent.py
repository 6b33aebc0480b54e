"""Stage 2: cut dialogues at turns that occur too often in the corpus."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from itertools import groupby
from pathlib import Path

import numpy as np
import pyarrow as pa

from data_prep.cleaning.cleaner import ONE_TURN
from data_prep.corpus.frequent_turns import REASONS, FrequentTurns
from data_prep.stages.arrow_files import (
    PieceCollector,
    concatenate,
    hashes_of,
    open_buckets,
    provenances_of,
    save_buckets,
    texts_of,
    turn_starts,
)
from data_prep.stages.block_id import BlockId
from data_prep.stages.losses import Losses


@cache
def read_frequent(path: Path) -> FrequentTurns:
    return FrequentTurns.load(path)


def cut_block(folder: Path, block_id: BlockId, frequent_path: Path, buckets: int) -> None:
    """Write NAME-cut.arrow, the block without the turns that are too frequent, and its losses.

    Args:
        folder: The work folder.
        block_id: Determines NAME, the common part of the names of the files.
        frequent_path: File of a `FrequentTurns`.
        buckets: Number of buckets.
    """
    frequent = read_frequent(frequent_path)
    file = open_buckets(folder / f"{block_id.name}.arrow")
    new_pieces, losses = PieceCollector(buckets), Losses([block_id])
    untouched = [
        _cut_batch(file.get_batch(bucket), frequent, new_pieces, losses) for bucket in range(buckets)
    ]  # a cut changes the bucket of a dialogue, so all new pieces are needed before a bucket can be written
    batches = (concatenate([old, new]) for old, new in zip(untouched, new_pieces.batches(), strict=True))
    save_buckets(folder / f"{block_id.name}-cut.arrow", batches)
    losses.save(folder / f"{block_id.name}-cut")


def _cut_batch(
    batch: pa.RecordBatch, frequent: FrequentTurns, new_pieces: PieceCollector, losses: Losses
) -> pa.RecordBatch:
    """Cut the dialogues of a batch at frequent turns; return the dialogues that have none."""
    starts = turn_starts(batch)
    reasons = frequent.find_dirty(hashes_of(batch), starts)
    is_cut = np.zeros(len(batch), bool)
    is_cut[np.searchsorted(starts, np.flatnonzero(reasons >= 0), "right") - 1] = True
    cut = batch.filter(pa.array(is_cut))
    dialogues = zip(np.flatnonzero(is_cut).tolist(), texts_of(cut), provenances_of(cut), strict=True)
    for row, turns, provenance in dialogues:
        turn_reasons = reasons[starts[row] : starts[row + 1]].tolist()
        pieces, lost = _cut(turns, turn_reasons)
        for reason, turn in lost:
            losses.describe(provenance, reason, turn)
        losses.add(provenance, len(pieces) - 1, REASONS[max(turn_reasons)], len(lost))
        for piece in pieces:
            new_pieces.add(piece, provenance._replace(whole=False))
    return batch.filter(pa.array(~is_cut))


def _cut(turns: Sequence[str], reasons: Sequence[int]) -> tuple[list[list[str]], list[tuple[str, str]]]:
    """Return the parts of a dialogue between its removed turns (reason 0 or more), and (reason, text) of the lost turns.

    A part of one turn is lost too.
    """
    pieces: list[list[str]] = []
    lost: list[tuple[str, str]] = []
    for reason, group in groupby(zip(turns, reasons, strict=True), key=lambda item: item[1]):
        part = [turn for turn, _ in group]
        if reason < 0 and len(part) > 1:
            pieces.append(part)
        else:
            lost += [(REASONS[reason] if reason >= 0 else ONE_TURN, turn) for turn in part]
    return pieces, lost
