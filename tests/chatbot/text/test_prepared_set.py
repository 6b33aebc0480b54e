"""A prepared set from elsewhere: every fault is one sentence, and no file outside the set is opened."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import datasets
import pytest

from chatbot.errors import FileError
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.prepared_set import larger_valid_share, load_manifest, load_split, split_features
from training.inputs import check_inputs
from training.settings import TrainSettings


@pytest.fixture
def folder(prepared, tmp_path) -> Path:
    return Path(shutil.copytree(prepared, tmp_path / "set"))


def change(path: Path, **values) -> None:
    path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | values), encoding="utf-8")


def write_rows(folder: Path, turns, units=5, features=None) -> None:
    shutil.rmtree(folder)
    rows = {"turns": turns, "units": [units] * len(turns)}
    datasets.Dataset.from_dict(rows, features=features or split_features()).save_to_disk(folder)


MANIFESTS = [
    ("fingerprint", {"a": ["\x1b[31m"]}),
    ("tokenizer_hash", ["a"]),
    ("sources", 5),
    ("sources", "a.jsonl"),
    ("sources", [{"file": 3}]),
    ("sources", ["a.jsonl"]),
    ("splits", [1]),
    ("splits", {}),
    ("splits", {"train": {"dialogues": 3}, "valid": {"dialogues": 1}}),
    ("splits", {"train": {"dialogues": -3, "content_hash": "a"}, "valid": {"dialogues": 1, "content_hash": "a"}}),
    ("splits", {"train": {"dialogues": "3", "content_hash": "a"}, "valid": 7}),
]


@pytest.mark.parametrize(("name", "value"), MANIFESTS)
def test_a_manifest_with_a_value_of_the_wrong_type_is_refused(folder, name, value):
    change(folder / "manifest.json", **{name: value})
    with pytest.raises(FileError, match=rf"manifest\.json has an unusable value for {name}\. Prepare"):
        load_manifest(folder)
    with pytest.raises(FileError, match="unusable value"):
        check_inputs(TrainSettings([str(folder)], str(folder / "run")))


ROWS = {
    "huge id": ([[[10**9, 5], [7, 8]]] * 3, "token ids 5 to 1000000000"),
    "negative id": ([[[-5, 5], [7, 8]]] * 3, "token ids -5 to 8"),
    "no id": ([[[5, None], [7, 8]]], "a value is missing"),
    "no turn": ([[None, [7, 8]]], "a value is missing"),
}


@pytest.mark.parametrize(("turns", "fault"), ROWS.values(), ids=ROWS)
def test_ids_that_are_not_in_the_vocabulary_are_refused(folder, turns, fault):
    for split in ("train", "valid"):
        write_rows(folder / split, turns)
        with pytest.raises(FileError, match=rf"Cannot read the {split} split of .* \(.*{fault}.*\)\. Prepare"):
            load_split(folder, split)
    with pytest.raises(FileError, match="valid split"):
        next(read_dialogues(folder))


def test_units_below_0_and_columns_of_other_types_are_refused(folder):
    write_rows(folder / "train", [[[5], [6]]], units=-5)
    with pytest.raises(FileError, match="units is missing or negative"):
        load_split(folder, "train")
    texts = datasets.List(datasets.List(datasets.Value("string")))
    write_rows(
        folder / "train", [[["a"]]], features=datasets.Features({"turns": texts, "units": datasets.Value("int32")})
    )
    with pytest.raises(FileError, match="other types"):
        load_split(folder, "train")


@pytest.mark.parametrize("name", ["../../../../../../../../../../etc/passwd", "/etc/passwd", "..", "../set/a", 5, None])
def test_a_split_that_names_a_file_outside_its_folder_is_refused(folder, name):
    change(folder / "train" / "state.json", _data_files=[{"filename": name}])
    with pytest.raises(FileError, match=r"state\.json names the file"):
        load_split(folder, "train")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "link"])
@pytest.mark.parametrize("name", ["state.json", "dataset_info.json", "data-00000-of-00001.arrow"])
def test_a_file_of_a_split_that_is_a_pipe_or_leads_outside_is_refused(folder, name, kind, tmp_path):
    path = folder / "train" / name
    path.rename(tmp_path / name)
    os.mkfifo(path) if kind == "pipe" else path.symlink_to(tmp_path / name)
    with pytest.raises(FileError, match="not a regular file" if kind == "pipe" else "a link that leaves its folder"):
        load_split(folder, "train")


def test_a_link_to_a_whole_set_can_be_read(folder, tmp_path):
    (tmp_path / "linked").symlink_to(folder)
    assert load_split(tmp_path / "linked", "train")["turns"] == load_split(folder, "train")["turns"]


@pytest.mark.parametrize(
    "state", [{"_data_files": 3}, {"_data_files": [3]}, {"_data_files": [{}]}, {"_format_type": "jax"}]
)
def test_a_damaged_state_is_one_sentence(folder, state):
    change(folder / "train" / "state.json", **state)
    with pytest.raises(FileError, match=r"^Cannot read the train split"):
        load_split(folder, "train")


@pytest.mark.parametrize(
    ("train", "valid", "file_for", "times", "share"),
    [
        (33, 4, "train", 12.5, None),  # of some hundred messages a larger share would take what there is to learn
        (980, 20, "train", 2.5, 0.05),
        (80, 20, "train", 1.5, None),
        (90, 10, "train", 2.0, 0.2),
        (980, 20, "valid", 2.5, None),  # --valid names the files, so --valid-share has no effect
        (980, 0, "train", 2.5, None),
    ],
)
def test_a_larger_share_is_advised_where_enough_is_left_to_train_on(tmp_path, train, valid, file_for, times, share):
    splits = {name: {"dialogues": count, "content_hash": "x"} for name, count in (("train", train), ("valid", valid))}
    manifest = {
        "fingerprint": "x",
        "tokenizer_hash": "x",
        "sources": [{"file": "a", "for": file_for}],
        "splits": splits,
    }
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert larger_valid_share(tmp_path, times) == share
