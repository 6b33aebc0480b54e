"""Record of dialogues lost after cleaning: duplicates, near-duplicates, and training dialogues that repeat held-out ones."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chatbot.storage import write_stream
from data_prep.cleaning.ledger import Ledger
from data_prep.corpus.frequent_turns import REASONS
from data_prep.stages.arrow_files import FILE_SHIFT
from data_prep.stages.clean_block import Unit, write_gone

DUPLICATE, NEAR = "duplicate", "near_duplicate"
LEAKS = {"test": "also_in_test", "valid": "also_in_valid"}
LOSSES = (*REASONS, DUPLICATE, NEAR, *LEAKS.values())
"""Reasons for which a dialogue that is clean does not stay as it is."""


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
