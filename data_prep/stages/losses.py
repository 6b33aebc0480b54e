"""Record of clean dialogues that are dropped or cut, because of frequent turns or as copies of other dialogues."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chatbot.storage import write_stream
from data_prep.cleaning.ledger import Ledger
from data_prep.corpus.frequent_turns import REASONS
from data_prep.stages.arrow_files import Provenance, file_and_record
from data_prep.stages.block_id import BlockId
from data_prep.stages.clean_block import RemovedLines

DUPLICATE, NEAR = "duplicate", "near_duplicate"
LEAKS = {"test": "also_in_test", "valid": "also_in_valid"}
"""For each held-out split, the reason to drop a train dialogue of which the split has a copy."""
LOSSES = (*REASONS, DUPLICATE, NEAR, *LEAKS.values())
"""Reasons for which a clean dialogue is dropped or cut."""

LOSS = np.dtype(
    [
        ("origin", np.int64),  # raw dialogue, see Provenance
        ("siblings", np.int64),  # number of pieces that cleaning cut the raw dialogue into
        ("whole", np.bool_),  # whether cleaning kept the raw dialogue whole
        ("change", np.int64),  # change of the number of its pieces: -1 if a piece is dropped
        ("reason", np.int64),  # index into LOSSES
        ("turns", np.int64),  # number of turns that are removed
    ]
)
"""A piece of the input, a dialogue or a turn, that is dropped or shortened."""


class Losses:
    """Losses in some blocks: dialogues and turns that are dropped after cleaning.

    Args:
        blocks: Blocks of the input files. A piece is a dialogue that cleaning has cut from a raw dialogue of one of these
            blocks.
    """

    def __init__(self, blocks: Sequence[BlockId]):
        self._sources = {block.file: block.source for block in blocks}
        self._losses: list[tuple[int, int, bool, int, int, int]] = []
        self._removed = RemovedLines()

    def add(self, provenance: Provenance, change: int, reason: str, turns: int) -> None:
        """Count a loss.

        Args:
            provenance: Raw dialogue that the piece was cut from.
            change: Number of pieces that are left of this piece, minus 1.
            reason: One of `LOSSES`.
            turns: Number of turns that are removed.
        """
        self._losses.append((*provenance, change, LOSSES.index(reason), turns))

    def describe(self, provenance: Provenance, reason: str, text: str | Sequence[str]) -> None:
        """Add a line to the list of removed turns and dialogues."""
        file, record = file_and_record(provenance.origin)
        self._removed.add({"file": self._sources[file], "record": record, "reason": reason, "text": text})

    def save(self, path: Path) -> None:
        """Write PATH.gz, the removed turns and dialogues, and last PATH.npy, a `LOSS` array."""
        self._removed.save(path.with_name(f"{path.name}.gz"))
        losses = np.array(self._losses, LOSS)
        write_stream(path.with_name(f"{path.name}.npy"), lambda file: np.save(file, losses))


def apply_losses(losses: np.ndarray, ledger: Ledger) -> None:
    """Correct the counts of a ledger for dialogues that the stages after cleaning removed or shortened.

    A raw dialogue that loses all its pieces counts as dropped, with the reason of its first loss. A raw dialogue that
    cleaning kept whole and that loses only some pieces counts as split.

    Args:
        losses: `LOSS` array `[N]`, in the order of the stages.
        ledger: Counts after cleaning.
    """
    if not len(losses):
        return
    losses = losses[np.argsort(losses["origin"], kind="stable")]
    firsts = np.flatnonzero(np.diff(losses["origin"], prepend=-1))  # first loss of each raw dialogue
    pieces_left = losses["siblings"][firsts] + np.add.reduceat(losses["change"], firsts)
    was_whole = np.logical_or.reduceat(losses["whole"], firsts)
    is_dropped = pieces_left <= 0
    counts = ledger.dialogues
    counts["kept_whole"] -= int(was_whole.sum())
    counts["split"] += int((was_whole & ~is_dropped).sum()) - int((~was_whole & is_dropped).sum())
    counts["dropped"] += int(is_dropped.sum())
    dropped = np.bincount(losses["reason"][firsts][is_dropped], minlength=len(LOSSES))
    for reason, count in zip(LOSSES, dropped.tolist(), strict=True):
        if count:
            ledger.dropped[reason] += count
    ledger.pieces += int(losses["change"].sum())
    ledger.turns["removed"] += int(losses["turns"].sum())
