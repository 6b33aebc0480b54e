from __future__ import annotations

import math

import pytest
import torch

import training.run
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.model.network import XianliaoForCausalLM
from tests.conftest import tiny_config
from tests.training.test_training import settings_for, weights_hash
from training.optim.optimizers import Muon, block_matrices, build_optimizers, orthogonalize
from training.reporting.logs import read_metrics
from training.run import train
from training.settings import TrainSettings

COEFFICIENTS = (3.4445, -4.7750, 2.0315)


@pytest.mark.parametrize("shape", [(40, 40), (100, 30), (30, 100)])
def test_orthogonalize_levels_the_singular_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape)
    u, _, vt = torch.linalg.svd(matrix, full_matrices=False)
    orthogonal = orthogonalize(matrix, COEFFICIENTS, 5, 1e-7)
    values = (u.T @ orthogonal @ vt.T).diagonal()  # same singular vectors
    assert values[: len(values) // 2].min() > 0.5
    assert values.max() < 1.3
    torch.testing.assert_close(u @ (u.T @ orthogonal @ vt.T) @ vt, orthogonal, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("condition", [10.0, 1e3])
def test_small_singular_values_of_an_ill_conditioned_matrix_end_lower(condition, seed):
    """Those above about 1 % of the norm are levelled whatever the condition number, the others are only raised."""
    torch.manual_seed(seed)
    u, v = (torch.linalg.qr(torch.randn(64, 64))[0] for _ in range(2))
    values = torch.logspace(0, -math.log10(condition), 64)
    ended = (u.T @ orthogonalize(u @ values.diag() @ v.T, COEFFICIENTS, 5, 1e-7) @ v).diagonal()
    large = values > 0.01 * values.norm()
    assert 0.65 < ended[large].min() <= ended.max() < 1.25
    assert large.all() == (condition == 10)
    if condition == 1e3:
        assert ended.min().item() == pytest.approx(0.21, abs=0.01)
        assert (ended < 0.7).float().mean().item() == pytest.approx(0.30, abs=0.02)
    assert (ended > values / values.norm()).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(48, 32), (32, 48)])
def test_a_step_is_that_of_torch_up_to_bfloat16(shape, dtype, monkeypatch):
    monkeypatch.setattr(Muon, "dtype", dtype)
    options = {"lr": 0.01, "weight_decay": 0.1, "adjust_lr_fn": "match_rms_adamw"}
    steps = []
    for kind in (Muon, torch.optim.Muon):
        torch.manual_seed(0)
        weight = torch.nn.Parameter(torch.randn(shape))
        start = weight.detach().clone()
        optimizer = kind([weight], **options)
        for _ in range(4):
            weight.grad = torch.randn(shape)
            optimizer.step()
        steps.append(weight.detach() - start)
    assert (steps[0] - steps[1]).norm() / steps[1].norm() < 0.02


def test_the_iteration_has_the_precision_of_the_run(tokenizer):
    model = XianliaoForCausalLM(tiny_config(tokenizer))
    for precision, dtype in (("no", torch.float32), ("bf16", torch.bfloat16)):
        settings = TrainSettings(data=["x"], output="y", optimizer="muon", precision=precision)
        assert build_optimizers(model, settings)[1].dtype == dtype


@pytest.mark.parametrize("kind", ["adamw", "muon"])
def test_every_parameter_is_trained_once_and_only_matrices_decay(tokenizer, kind):
    config = tiny_config(tokenizer, num_hidden_layers=len(LAYER_TYPES), layer_types=list(LAYER_TYPES), short_conv=4)
    model = XianliaoForCausalLM(config)
    optimizers = build_optimizers(model, TrainSettings(data=["x"], output="y", optimizer=kind, weight_decay=0.1))
    groups = [group for optimizer in optimizers for group in optimizer.param_groups]
    trained_ids = [id(p) for group in groups for p in group["params"]]
    assert sorted(trained_ids) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    decayed = {id(p) for group in groups if group["weight_decay"] > 0 for p in group["params"]}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            no_matrix = name.endswith(("bias", "mixture", "convolution.weight"))
            assert (id(parameter) in decayed) == (parameter.ndim >= 2 and not no_matrix), name
    assert len(optimizers) == (2 if kind == "muon" else 1)
    assert not {id(model.token_embedding.weight), id(model.speaker_embedding.weight)} & set(
        map(id, block_matrices(model))
    )


@pytest.mark.slow
def test_muon_learns_and_resumes_to_the_same_weights(prepared, tmp_path, monkeypatch):
    changes = {"optimizer": "muon", "learning_rate": 5e-3}
    train(settings_for(prepared, tmp_path / "whole", **changes))
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "whole")]
    assert losses[-1] < losses[0] - 0.1
    step, taken = training.run.Run._step, []

    def stops(self, rows, objective):
        if len(taken) == 6:
            raise KeyboardInterrupt
        taken.append(1)
        return step(self, rows, objective)

    monkeypatch.setattr(training.run.Run, "_step", stops)
    with pytest.raises(KeyboardInterrupt):
        train(settings_for(prepared, tmp_path / "stopped", **changes))
    monkeypatch.undo()
    train(settings_for(prepared, tmp_path / "stopped", resume=True, **changes))
    assert weights_hash(tmp_path / "stopped") == weights_hash(tmp_path / "whole")
