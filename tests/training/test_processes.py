"""The gradient of a step does not depend on micro-batches or on the number of processes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from tests.training.test_resume import run

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
