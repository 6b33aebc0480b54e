"""The gradient of a step does not depend on micro-batches or on the number of processes."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import load_model
from tests.training.test_resume import run
from training.reporting.logs import read_metrics

BATCH = {"batch_rows": 32, "row_tokens": 64, "regularization.dropout": 0}


def gradient(
    prepared: Path, folder: Path, processes: int, micro: int, kind: str = "sum", **changes
) -> list[torch.Tensor]:
    name = f"{processes}-{micro}-{kind}"
    flags = {**BATCH, "micro_batch_rows": micro, **changes}
    file = folder / f"{name}.pt"
    run(processes, prepared, folder / name, str(file), kind, module="tests.training.first_gradient", **flags)
    return torch.load(file, weights_only=True)


def largest_difference(a: list[torch.Tensor], b: list[torch.Tensor]) -> float:
    return max((x - y).abs().max().item() for x, y in zip(a, b, strict=True))


@pytest.mark.slow
def test_accumulation_and_processes_leave_the_gradient_as_it_is(prepared, tmp_path):
    """Rows carry unequal numbers of targets; 1e-10 in float64, so that only a wrong formula can differ."""
    whole = gradient(prepared, tmp_path, 1, 32)
    assert whole[0].dtype == torch.float64
    assert max(part.abs().max().item() for part in whole) > 1e-3
    assert largest_difference(gradient(prepared, tmp_path, 1, 4), whole) < 1e-10
    assert largest_difference(gradient(prepared, tmp_path, 2, 16), whole) < 1e-10
    assert largest_difference(gradient(prepared, tmp_path, 2, 3), whole) < 1e-10
    clipped = gradient(prepared, tmp_path, 1, 4, "clipped")
    scale = sum(part.square().sum() for part in whole).sqrt() / sum(part.square().sum() for part in clipped).sqrt()
    assert largest_difference([scale * part for part in clipped], whole) > 1e-6  # another direction, not only a length


@pytest.mark.slow
def test_two_processes_learn_from_adversaries_like_one(prepared, tmp_path):
    changes = {"regularization.fgm": 0.5}
    whole = gradient(prepared, tmp_path, 1, 32, **changes)
    assert largest_difference(gradient(prepared, tmp_path, 2, 4, **changes), whole) < 1e-10
    assert largest_difference(whole, gradient(prepared, tmp_path, 1, 16)) > 1e-6


@pytest.mark.slow
def test_a_sharded_model_trains_saves_and_goes_on(prepared, tmp_path):
    """FSDP2 over two processes: the loss of one process, a checkpoint that loads anywhere, and resuming."""
    changes = {"regularization.dropout": 0}
    run(1, prepared, tmp_path / "one", **changes)
    sharded = {"module": "tests.training.sharded", **changes}
    assert run(2, prepared, tmp_path / "sharded", **sharded) == 0
    losses = [[entry["loss"] for entry in read_metrics(tmp_path / name)] for name in ("one", "sharded")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-4)
    assert Chatbot.from_pretrained(tmp_path / "sharded").reply(["你好"], seed=0)
    shutil.copytree(tmp_path / "sharded", tmp_path / "cut")
    shutil.rmtree(tmp_path / "cut" / "resume" / "step-00000012")
    assert run(2, prepared, tmp_path / "cut", **sharded) == 0
    weights = [load_model(tmp_path / name).state_dict() for name in ("sharded", "cut")]
    assert all(torch.equal(tensor, weights[1][name]) for name, tensor in weights[0].items())
    assert run(2, prepared, tmp_path / "muon", optimizer="muon", **sharded) != 0
