"""Self-terminating heads and backward models are trained by the same loop."""

from __future__ import annotations

import json

import pytest

from chatbot.checkpoint.folder import load_model
from tests.training.test_training import settings_for, weights_hash
from training.data.packing import PackedData
from training.data.turn_store import TurnStore
from training.reporting.logs import read_metrics
from training.run import Run, train
from training.settings import SettingsError


def _interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["st", "nmst"])
def test_a_model_with_a_head_learns_and_resumes(prepared, tmp_path, monkeypatch, kind):
    settings = {"termination": kind, "termination_epsilon": 1e-2}
    train(settings_for(prepared, tmp_path / "whole", **settings))
    metrics = read_metrics(tmp_path / "whole")
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.1
    model = load_model(tmp_path / "whole")
    assert model.config.termination == kind
    assert model.end_head.weight.any()
    steps = iter(range(8))
    real = Run._step
    monkeypatch.setattr(Run, "_step", lambda run, *args: real(run, *args) if next(steps) < 7 else _interrupt())
    with pytest.raises(KeyboardInterrupt):
        train(settings_for(prepared, tmp_path / "parts", **settings))
    monkeypatch.undo()
    train(settings_for(prepared, tmp_path / "parts", resume=True, **settings))
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")


@pytest.mark.slow
def test_a_new_head_on_a_trained_model_is_fitted_first(prepared, tmp_path):
    train(settings_for(prepared, tmp_path / "plain", max_steps=40, eval_every=40))
    before = json.loads((tmp_path / "plain" / "training.json").read_text())["best"]
    changes = {"init": str(tmp_path / "plain"), "max_steps": 1, "learning_rate": 1e-9, "eval_every": 1}
    changes["model"] = settings_for("x", "y").model.__class__()
    train(settings_for(prepared, tmp_path / "ended", termination="nmst", **changes))
    after = json.loads((tmp_path / "ended" / "training.json").read_text())["best"]
    assert after < before + 0.05
    assert load_model(tmp_path / "ended").config.termination == "nmst"
    again = {**changes, "init": str(tmp_path / "ended")}
    train(settings_for(prepared, tmp_path / "kept", **again))
    assert load_model(tmp_path / "kept").config.termination == "nmst"


def test_all_processes_get_the_head_that_the_first_one_fitted(prepared, tmp_path, monkeypatch):
    train(settings_for(prepared, tmp_path / "plain", max_steps=1))
    monkeypatch.setattr("training.run.fit_end_head", lambda model, batches: model.end_head.weight.data.fill_(1.0))
    monkeypatch.setattr("training.run.broadcast", lambda tensor: tensor + 2)
    changes = {"init": str(tmp_path / "plain"), "max_steps": 1, "learning_rate": 1e-9, "weight_decay": 0.0}
    changes |= {"model": settings_for("x", "y").model.__class__(), "termination": "nmst", "warmup_steps": 0}
    train(settings_for(prepared, tmp_path / "ended", **changes))
    weight = load_model(tmp_path / "ended").end_head.weight
    assert weight.detach().tolist() == pytest.approx([3.0] * len(weight), abs=1e-4)


@pytest.mark.slow
def test_a_head_keeps_its_weights_when_only_its_bound_changes(prepared, tmp_path):
    train(settings_for(prepared, tmp_path / "first", termination="nmst", termination_epsilon=1e-3))
    (tmp_path / "first" / "vectors.safetensors").write_bytes(b"of the tokens")
    changes = {"init": str(tmp_path / "first"), "max_steps": 1, "learning_rate": 1e-9, "eval_every": 1}
    changes |= {"model": settings_for("x", "y").model.__class__(), "termination": "nmst", "termination_epsilon": 0.05}
    train(settings_for(prepared, tmp_path / "second", **changes))
    first, second = load_model(tmp_path / "first"), load_model(tmp_path / "second")
    assert second.config.termination_epsilon == 0.05
    assert (tmp_path / "second" / "vectors.safetensors").read_bytes() == b"of the tokens"
    assert (first.end_head.weight - second.end_head.weight).abs().max() < 1e-4
    assert first.end_head.weight.any()


def test_backward_data_is_the_dialogues_in_reverse(prepared, tokenizer, layout):
    forward, backward = (TurnStore([str(prepared)], "train", direction) for direction in (False, True))
    for dialogue in range(len(forward)):
        turns = forward.turns(dialogue)
        assert backward.turns(dialogue) == turns[::-1]
        assert backward.turn_lengths(dialogue) == forward.turn_lengths(dialogue)[::-1]
        assert backward.turns(dialogue, 1, 2) == turns[::-1][1:2]
    data = PackedData(backward, layout, 64, 4, 0, tokenizer.pad_id)
    batch = data.tensors(data.rows(0))
    assert int((batch["labels"] != -100).sum()) == data.targets(data.rows(0))


def test_a_backward_model_is_trained_and_told_apart(prepared, tmp_path):
    train(settings_for(prepared, tmp_path / "backward", direction="backward"))
    assert load_model(tmp_path / "backward").config.direction == "backward"
    metrics = read_metrics(tmp_path / "backward")
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.1


def test_settings_that_no_head_can_have():
    with pytest.raises(SettingsError, match="termination-epsilon"):
        settings_for("x", "y", termination="st", termination_epsilon=1.5).check()
    with pytest.raises(SettingsError, match="termination-delay"):
        settings_for("x", "y", termination_delay=-1).check()
    with pytest.raises(SettingsError, match="termination-delay requires"):
        settings_for("x", "y", termination="st", termination_delay=3).check()
