"""A run is resumed from the checkpoint that it was started from, not from another one of the same name."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

from training.settings import ModelSettings, TrainSettings
from training.state.identity import changed_settings, checkpoint_hash, identity_of, start_or_resume
from training.state.run_folder import ResumeError
from training.state.saved_state import save_state

MANIFEST = {"tokenizer_hash": "t", "splits": {"train": {"content_hash": "c"}}, "sources": [{"file": "a.jsonl"}]}


@pytest.fixture
def init(checkpoint, tmp_path):
    return shutil.copytree(checkpoint, tmp_path / "first" / "bot")


def started(init, output, resume=False):
    settings = TrainSettings(["set"], str(output), init=str(init), model=ModelSettings(), resume=resume)
    return settings, identity_of(settings, [[MANIFEST]])


def change_a_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    name = min(tensors)
    tensors[name].view(-1)[0] += 1
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def change_the_config(folder):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"rms_norm_eps": 1e-3}))


@pytest.mark.parametrize("change", [change_a_weight, change_the_config])
def test_another_checkpoint_of_the_same_name_is_noticed(init, tmp_path, change):
    output = tmp_path / "run"
    _, identity = started(init, output)
    save_state(output, 3, {"w": torch.ones(2)}, [{}], {"identity": identity})
    moved = shutil.copytree(init, tmp_path / "second" / "bot")  # the same checkpoint at another place
    settings, same = started(moved, output, resume=True)
    assert start_or_resume(settings, output, same)["step"] == 3
    change(moved)
    settings, other = started(moved, output, resume=True)
    with pytest.raises(ResumeError, match=r"\(the checkpoint of --init changed\).*--init .*another --output"):
        start_or_resume(settings, output, other)


def test_a_run_that_an_earlier_version_started_is_resumed(init, tmp_path):
    _, identity = started(init, tmp_path / "run")
    earlier = {name: value for name, value in identity.items() if name != "init_hash"}
    assert changed_settings(earlier, identity) == ""
    assert changed_settings(identity, identity) == ""


def test_files_beside_the_model_change_nothing(init):
    before = checkpoint_hash(init)
    (init / "README.md").write_text("a note")
    (init / "training.json").write_text("{}")
    assert checkpoint_hash(init) == before
