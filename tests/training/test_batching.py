from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.dialogue import IGNORED_LABEL, DialogptLayout
from training.batching import PackedData, Piece, TurnStore, cut_into_pieces, pack
from training.loop import split_rows


class FakeStore(TurnStore):
    def __init__(self, dialogues: list[list[list[int]]]):
        turns = [turn for dialogue in dialogues for turn in dialogue]
        self.ids = np.array([token for turn in turns for token in turn], dtype=np.int32)
        self.turn_starts = np.cumsum([0, *map(len, turns)])
        self.dialogue_starts = np.cumsum([0, *map(len, dialogues)])
        self.units = np.ones(len(dialogues), dtype=np.int64)


class Ids:
    cls_id, sep_id, pad_id = 1, 2, 0


DIALOGUES = st.lists(
    st.lists(st.lists(st.integers(3, 99), max_size=40), min_size=2, max_size=8), min_size=1, max_size=30
)


@given(DIALOGUES)
@settings(deadline=None)
def test_nothing_is_lost_cut_or_crosses(dialogues):
    store = FakeStore(dialogues)
    data = PackedData(store, DialogptLayout(Ids()), 32, 4, seed=3, pad_id=0)
    too_long = sum(len(turn) + 2 > 32 for turns in dialogues for turn in turns)
    assert data.left_out_turns == too_long
    seen = []
    for rows in data.batches(1):
        batch = data.tensors(rows)
        assert batch["input_ids"].shape == (len(rows), 32)
        assert data.targets(rows) == int((batch["labels"] != IGNORED_LABEL).sum())
        for number, row in enumerate(rows):
            assert (batch["segment_ids"][number].diff() >= 0).all()
            for segment, index in enumerate(row):
                piece = data.pieces[index]
                place = (batch["segment_ids"][number] == segment) & (batch["attention_mask"][number] == 1)
                expected = data.layout.lay_out(store.turns(piece.dialogue, piece.first, piece.last), piece.first)
                assert batch["input_ids"][number][place].tolist() == expected.input_ids
                assert batch["token_type_ids"][number][place].tolist() == expected.speaker_ids
                assert batch["labels"][number][place].tolist() == expected.labels
                seen += [(piece.dialogue, turn) for turn in range(piece.first, piece.last)]
    expected = [
        (number, index)
        for number, turns in enumerate(dialogues)
        for index, turn in enumerate(turns)
        if len(turn) + 2 <= 32
    ]
    assert sorted(seen) == expected


def test_a_dialogue_longer_than_a_row_keeps_its_parity():
    store = FakeStore([[[5] * 10, [6] * 10, [7] * 10]])
    pieces, left_out = cut_into_pieces(store, 24, DialogptLayout)
    assert pieces == [Piece(0, 0, 2, 23), Piece(0, 2, 3, 12)]
    assert left_out == 0


def test_rows_are_full_and_the_order_is_a_function_of_seed_and_epoch():
    lengths = np.random.default_rng(0).lognormal(3.3, 0.8, 5000).astype(int).clip(4, 256)
    pieces = [Piece(number, 0, 2, int(length)) for number, length in enumerate(lengths)]
    rows = pack(pieces, 256, seed=1, epoch=0)
    used = [sum(pieces[index].tokens for index in row) for row in rows]
    assert max(used) <= 256
    assert sum(used) / (256 * len(rows)) >= 0.97
    assert rows == pack(pieces, 256, seed=1, epoch=0)
    assert rows != pack(pieces, 256, seed=1, epoch=1)
    assert rows != pack(pieces, 256, seed=2, epoch=0)


def test_packing_the_samples_is_dense(prepared, layout):
    data = PackedData(TurnStore([str(prepared)], "train"), layout, 1024, 8, seed=0, pad_id=0)
    assert data.utilisation() >= 0.9  # the last row is never full, and there are only a few


@pytest.mark.parametrize("rows", [1, 4, 5, 16])
@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_ranks_share_the_rows_and_step_together(rows, ranks):
    batch = [[number] for number in range(rows)]
    parts = [split_rows(batch, 4, rank, ranks) for rank in range(ranks)]
    assert len({len(part) for part in parts}) == 1
    assert all(len(set(map(len, step))) == 1 for step in zip(*parts, strict=True))
    given = sorted(row for part in parts for micro in part for row in micro if row)
    assert given == sorted(batch)
