"""A gradient that is not finite is never followed."""

from __future__ import annotations

import math

import pytest
import torch

import training.step
from tests.training.test_training import settings_for
from training.optim.clipping import clip_gradients
from training.run import train
from training.settings import SettingsError


@pytest.mark.parametrize("kind", ["none", "norm", "soft"])
@pytest.mark.parametrize("value", [math.inf, -math.inf, math.nan])
def test_the_norm_of_a_gradient_that_is_not_finite_says_so(kind, value):
    parameter, other = torch.nn.Parameter(torch.ones(2)), torch.nn.Parameter(torch.ones(2))
    parameter.grad, other.grad = torch.tensor([value, 1.0]), torch.tensor([1.0, 2.0])
    assert not math.isfinite(clip_gradients([parameter, other], kind, 1.0))
    if kind != "none":  # what is left is no direction: the step must not be taken
        assert parameter.grad.isnan().any()


@pytest.mark.parametrize("kind", ["none", "norm", "soft"])
def test_an_infinite_gradient_stops_the_run_before_the_step(prepared, tmp_path, monkeypatch, kind):
    """The loss is finite, only one entry of the gradient is not."""
    real, weights = training.step.add_gradients, []

    def third_overflows(trained, *args):
        sums = real(trained, *args)
        parameters = list(trained.model.parameters())
        weights.append([parameter.detach().clone() for parameter in parameters])
        if len(weights) == 3:
            next(parameter for parameter in parameters if parameter.grad is not None).grad.view(-1)[0] = math.inf
            weights.append(parameters)
        return sums

    monkeypatch.setattr(training.step, "add_gradients", third_overflows)
    advice = r"--resume would repeat the step\. Start again in a new --output with a lower --learning-rate"
    with pytest.raises(SettingsError, match=f"at step 3: .*{advice}"):
        train(settings_for(prepared, tmp_path / "run", clip=kind, warmup_steps=1))
    second, third, after = weights[1], weights[2], weights[3]
    assert any(not torch.equal(a, b) for a, b in zip(second, third, strict=True))  # a usual step moves them
    assert all(torch.equal(a, b) for a, b in zip(third, after, strict=True))
