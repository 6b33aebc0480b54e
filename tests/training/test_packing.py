from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.text.layouts import IGNORED_LABEL, DialogptLayout
from chatbot.text.prepared_set import load_split
from training.data.packing import PackedData, draw, pack
from training.data.turn_store import Source, TurnStore, cut_into_pieces, parse_source
from training.settings import SettingsError, TrainSettings
from training.stage import split_rows


class FakeStore(TurnStore):
    def __init__(self, dialogues: list[list[list[int]]]):
        self.backward = False
        self.folders = ["fake"]
        self.folder_starts = np.array([0, len(dialogues)])
        turns = [turn for dialogue in dialogues for turn in dialogue]
        self._ids = [np.array([token for turn in turns for token in turn], dtype=np.int32)]
        self._ids_before = np.array([0, len(self._ids[0])])
        self.turn_starts = np.cumsum([0, *map(len, turns)])
        self.dialogue_starts = np.cumsum([0, *map(len, dialogues)])
        self.units = np.ones(len(dialogues), dtype=np.int64)


class Ids:
    cls_id, sep_id, pad_id = 1, 2, 0


DIALOGUES = st.lists(
    st.lists(st.lists(st.integers(3, 99), max_size=40), min_size=2, max_size=8), min_size=1, max_size=30
)


def test_a_store_maps_every_shard_and_batch(tmp_path, monkeypatch):
    from data_prep import pipeline as building
    from data_prep.stages import write_shard as shards

    monkeypatch.setattr(building, "BUCKET_BYTES", 4_000)
    monkeypatch.setattr(shards, "_ROWS_A_BATCH", 7)
    folders = []
    for name, text in (("a", "甲"), ("b", "乙")):
        lines = [json.dumps([f"{text}说{number}", "嗯" * (number % 3 + 1), "好"]) for number in range(150)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
        settings = building.PrepareSettings(tokenizer="default", valid_share=0.0)
        building.build([str(tmp_path / f"{name}.jsonl")], tmp_path / name, settings)
        folders.append(str(tmp_path / name))
    assert len(list((tmp_path / "a" / "train").glob("*.arrow"))) > 1
    store = TurnStore(folders, "train")
    expected = [turns for folder in folders for turns in load_split(folder, "train")["turns"]]
    assert len(store) == 300
    assert [store.turns(index) for index in range(300)] == expected
    assert [store.turns(index, 1, 3) for index in range(300)] == [turns[1:3] for turns in expected]
    assert [store.turn_lengths(index) for index in range(300)] == [[len(turn) for turn in turns] for turns in expected]
    counts = np.bincount([token for turns in expected for turn in turns for token in turn], minlength=9000)
    assert (store.token_counts(9000) == counts).all()


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
                dialogue, first, last = (
                    int(column[index]) for column in (data.pieces.dialogue, data.pieces.first, data.pieces.last)
                )
                mask = (batch["segment_ids"][number] == segment) & (batch["attention_mask"][number] == 1)
                expected = data.layout.lay_out(store.turns(dialogue, first, last), first)
                assert batch["input_ids"][number][mask].tolist() == expected.input_ids
                assert batch["token_type_ids"][number][mask].tolist() == expected.speaker_ids
                assert batch["labels"][number][mask].tolist() == expected.labels
                seen += [(dialogue, turn) for turn in range(first, last)]
    expected = [
        (number, index)
        for number, turns in enumerate(dialogues)
        for index, turn in enumerate(turns)
        if len(turn) + 2 <= 32
    ]
    assert sorted(seen) == expected


@given(DIALOGUES)
@settings(deadline=None)
def test_of_a_set_of_questions_and_answers_only_the_answers_are_learnt(dialogues):
    """Also where a dialogue is cut, where speaker 0 opens a piece, and where a piece has no answer."""
    store = FakeStore(dialogues)
    data = PackedData(store, DialogptLayout(Ids()), 32, 4, seed=3, pad_id=0, replies_only=[True])
    learnt = 0
    for rows in data.batches(0):
        batch = data.tensors(rows)
        counted = batch["labels"] != IGNORED_LABEL
        assert data.targets(rows) == int(counted.sum())
        assert (batch["token_type_ids"][counted] == 1).all()
        assert all(data.pieces.targets[index] > 0 for row in rows for index in row)
        learnt += int(counted.sum())
    fits = [(turn, index) for turns in dialogues for index, turn in enumerate(turns) if len(turn) + 2 <= 32]
    assert learnt == sum(len(turn) + 1 for turn, index in fits if index % 2)


def test_only_the_marked_set_is_learnt_in_part():
    store = FakeStore([[[5] * 3, [6] * 4], [[7] * 2, [8] * 5]])
    store.folders, store.folder_starts = ["whole", "answers"], np.array([0, 1, 2])
    data = PackedData(store, DialogptLayout(Ids()), 32, 4, seed=3, pad_id=0, replies_only=[False, True])
    assert data.pieces.targets.tolist() == [9, 6]


def test_a_dialogue_longer_than_a_row_keeps_its_parity():
    store = FakeStore([[[5] * 10, [6] * 10, [7] * 10]])
    pieces, left_out = cut_into_pieces(store, 24, DialogptLayout(Ids()))
    columns = [column.tolist() for column in vars(pieces).values()]
    assert columns == [[0, 0], [0, 2], [2, 3], [23, 12], [22, 11], [False, False]]
    assert left_out == 0


def test_rows_are_full():
    lengths = np.random.default_rng(0).lognormal(3.3, 0.8, 5000).astype(int).clip(4, 256)
    rows = pack(lengths, 256, np.random.default_rng(1).permutation(5000))
    used = [int(lengths[row].sum()) for row in rows]
    assert max(used) <= 256
    assert sum(used) / (256 * len(rows)) >= 0.97
    assert sorted(index for row in rows for index in row) == list(range(5000))


def test_the_order_is_a_function_of_seed_and_epoch():
    store = FakeStore([[[5] * 10, [6] * 10]] * 50)
    orders = [PackedData(store, DialogptLayout(Ids()), 64, 4, seed, 0).rows(epoch) for seed, epoch in [(1, 0)] * 2]
    others = [PackedData(store, DialogptLayout(Ids()), 64, 4, seed, 0).rows(epoch) for seed, epoch in [(1, 1), (2, 0)]]
    assert orders[0] == orders[1]
    assert all(other != orders[0] for other in others)


@given(st.integers(1, 60), st.sampled_from([0.1, 0.25, 0.3, 1.0, 1.5, 3.0]), st.integers(0, 5))
def test_a_mixture_goes_through_everything_before_it_repeats(count, weight, seed):
    epochs = [draw(count, weight, (seed,), epoch) for epoch in range(40)]
    drawn = np.concatenate(epochs)
    assert len(drawn) == int(40 * weight * count)
    for start in range(0, len(drawn) - count + 1, count):
        assert sorted(drawn[start : start + count].tolist()) == list(range(count))
    assert max(map(len, epochs)) - min(map(len, epochs)) <= 1


def test_weights_decide_the_share_of_a_set(prepared, layout):
    store = TurnStore([str(prepared), str(prepared)], "train")
    half = len(store) // 2
    data = PackedData(store, layout, 256, 8, seed=0, pad_id=0, weights=[2, 0.5])
    dialogues = [int(data.pieces.dialogue[index]) for row in data.rows(0) for index in row]
    pieces = sum(data.pieces.dialogue < half)
    assert sum(dialogue < half for dialogue in dialogues) == 2 * pieces
    assert sum(dialogue >= half for dialogue in dialogues) == pieces // 2
    assert data.describe([[0]]) == f"{prepared.name}: 0"


def test_sources_carry_weights():
    assert parse_source("runs/a").weight == 1
    assert parse_source("runs/a:0.3") == Source("runs/a", 0.3)
    assert parse_source("C:\\sets\\a") == Source("C:\\sets\\a")
    assert parse_source("runs/a:replies") == Source("runs/a", 1.0, True)
    assert parse_source("C:\\sets\\a:0.3:replies") == Source("C:\\sets\\a", 0.3, True)
    assert parse_source("runs/a:reply") == Source("runs/a:reply")
    for wrong in ("a:0", "a:-1", "a:nan", "a:inf", "a:10001"):
        with pytest.raises(SettingsError, match="above 0"):
            TrainSettings([wrong], "out").check()


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
    dealt = sorted(row for part in parts for micro in part for row in micro if row)
    assert dealt == sorted(batch)
