"""The moving average of the weights: its formula, the checkpoint, and a resumed run."""

from __future__ import annotations

import pytest
import safetensors.torch
import torch

from tests.training.test_training import settings_for
from training.optim.weight_average import WARMUP, WeightAverage
from training.reporting.logs import read_metrics
from training.run import train
from training.settings import SettingsError


def test_formula_and_exchange():
    model = torch.nn.Linear(1, 1, bias=False)
    average = WeightAverage(model, 0.5)
    expected = model.weight.item()
    for step in range(1, 40):
        torch.nn.init.constant_(model.weight, float(step))
        average.update(step)
        decay = min(0.5, (1 + step) / (WARMUP + step))
        expected = decay * expected + (1 - decay) * step
    with average.in_place():
        assert model.weight.item() == pytest.approx(expected)
    assert model.weight.item() == 39
    with pytest.raises(ZeroDivisionError), average.in_place():
        1 / 0  # noqa: B018
    assert model.weight.item() == 39


def test_the_first_averages_forget_the_initial_weights():
    """The decay after n steps is at most (1 + n) / (10 + n): 2 / 11 after the first."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.constant_(model.weight, 0.0)
    average = WeightAverage(model, 0.99)
    torch.nn.init.constant_(model.weight, 11.0)
    average.update(1)
    assert average.averages["weight"].item() == pytest.approx(9)


def test_the_checkpoint_is_the_average_and_the_run_goes_on_from_the_weights(prepared, tmp_path):
    plain, averaged = (
        settings_for(prepared, tmp_path / name, weight_average=share) for name, share in (("a", 0), ("b", 0.9))
    )
    train(plain)
    train(averaged)
    losses = [[entry["loss"] for entry in read_metrics(tmp_path / name)] for name in "ab"]
    assert losses[0] == losses[1]
    weights = [
        safetensors.torch.load_file(tmp_path / name / "resume" / "step-00000012" / "model.safetensors") for name in "ab"
    ]
    assert all(torch.equal(weights[0][key], weights[1][key]) for key in weights[0])
    saved = [safetensors.torch.load_file(tmp_path / name / "model.safetensors") for name in "ab"]
    assert not any(torch.equal(saved[0][key], saved[1][key]) for key in saved[0])


def test_a_resumed_run_has_the_same_average(prepared, tmp_path):
    whole = settings_for(prepared, tmp_path / "whole", weight_average=0.9, learning_rate=1e-3)
    train(whole)
    part = settings_for(prepared, tmp_path / "part", weight_average=0.9, learning_rate=1e-3)
    train(part)
    for folder in (tmp_path / "part" / "resume").glob("step-00000012"):
        for file in folder.iterdir():
            file.unlink()
        folder.rmdir()
    train(settings_for(prepared, tmp_path / "part", weight_average=0.9, learning_rate=1e-3, resume=True))
    ends = [tmp_path / name / "resume" / "step-00000012" / "average.safetensors" for name in ("whole", "part")]
    first, second = map(safetensors.torch.load_file, ends)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_share_of_one_is_refused(prepared, tmp_path):
    with pytest.raises(SettingsError, match="--weight-average must be at least 0 and below 1"):
        train(settings_for(prepared, tmp_path / "run", weight_average=1.0))
