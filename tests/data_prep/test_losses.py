"""Counts after losses: every raw dialogue is exactly one of kept whole, split and dropped."""

from __future__ import annotations

import gzip
import json
from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from data_prep.cleaning.ledger import Ledger
from data_prep.stages.arrow_files import Provenance, file_and_record, origin_of
from data_prep.stages.block_id import BlockId
from data_prep.stages.losses import LOSS, Losses, apply_losses

BLOCK = BlockId(3, 0, "x.jsonl", "train")


def saved(losses: Losses, folder) -> np.ndarray:
    losses.save(folder / "losses")
    return np.load(folder / "losses.npy")


def test_origins_are_file_and_record():
    assert file_and_record(origin_of(3, 12_345)) == (3, 12_345)


def test_losses_are_saved_by_name_and_described(tmp_path):
    losses, provenance = Losses([BLOCK]), Provenance(origin_of(3, 7), siblings=2, whole=False)
    losses.add(provenance, -1, "duplicate", 2)
    losses.describe(provenance, "duplicate", ["你好", "你好呀"])
    array = saved(losses, tmp_path)
    assert array.dtype == LOSS
    assert {name: array[name].tolist() for name in ("siblings", "whole", "change", "turns")} == {
        "siblings": [2],
        "whole": [False],
        "change": [-1],
        "turns": [2],
    }
    (line,) = gzip.decompress((tmp_path / "losses.gz").read_bytes()).decode().splitlines()
    assert json.loads(line) == {"file": "x.jsonl", "record": 7, "reason": "duplicate", "text": ["你好", "你好呀"]}


def test_no_losses_change_nothing(tmp_path):
    ledger = Ledger(Counter(read=1, kept_whole=1), pieces=1)
    apply_losses(saved(Losses([BLOCK]), tmp_path), ledger)
    assert ledger.dialogues == {"read": 1, "kept_whole": 1}


@given(st.lists(st.tuples(st.integers(1, 4), st.lists(st.integers(-1, 2), max_size=4), st.booleans()), max_size=12))
def test_counts_are_those_of_counting_one_by_one(dialogues):
    """Each dialogue has pieces, and losses that change their number: to 0 or more."""
    ledger, expected, rows, dropped = Ledger(), Counter(), [], Counter()
    for number, (siblings, changes, whole) in enumerate(dialogues):
        whole = whole and siblings == 1
        pieces = siblings
        for change in changes:
            if pieces + change >= 0 and pieces:
                rows.append((number, siblings, whole, change, number % 3, 1))
                pieces += change
        was = "kept_whole" if whole else "split"
        ledger.dialogues["read"] += 1
        ledger.dialogues[was] += 1
        ledger.pieces += siblings
        touched = any(row[0] == number for row in rows)
        becomes = "dropped" if not pieces else "split" if touched else was
        expected[becomes] += 1
        expected["pieces"] += pieces
        dropped[number % 3] += not pieces
    apply_losses(np.array(rows, LOSS), ledger)
    counts = ledger.dialogues
    assert counts["read"] == counts["kept_whole"] + counts["split"] + counts["dropped"] == len(dialogues)
    assert all(counts[name] == expected[name] for name in ("kept_whole", "split", "dropped"))
    assert ledger.pieces == expected["pieces"]
    assert ledger.turns["removed"] == len(rows)
    assert sum(ledger.dropped.values()) == expected["dropped"]
    assert sorted(ledger.dropped.values()) == sorted(count for count in dropped.values() if count)
