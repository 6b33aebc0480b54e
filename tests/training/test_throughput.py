"""Utilisation never stops a run and is never above 100 %."""

from __future__ import annotations

import math
import time

import pytest
import torch

from tests.training.test_training import settings_for
from training.reporting.logs import read_metrics
from training.reporting.throughput import flops_per_token, matmul_peak, utilisation
from training.run import train


def test_a_product_slower_than_the_measurement_is_measured_all_the_same(monkeypatch):
    clock = iter(range(0, 10**6, 7))  # seven seconds pass between any two looks at the clock
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert matmul_peak(torch.device("cpu"), torch.float32) == pytest.approx(2 * 1024**3 / 7)


def test_a_clock_that_stands_still_gives_a_finite_peak(monkeypatch):
    clock = iter([0.0] * 8 + [9.0] * 8)
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    assert 0 < matmul_peak(torch.device("cpu"), torch.float32) < math.inf


@pytest.mark.parametrize(
    ("flops", "peak", "share"),
    [(30.0, 100.0, 0.3), (100.0, 100.0, 1.0), (101.0, 100.0, None), (1.0, 0.0, None), (1.0, math.nan, None)],
)
def test_utilisation_is_a_share_or_unknown(flops, peak, share):
    assert utilisation(flops, peak) == share


@pytest.mark.parametrize("peak", [0.0, 1.0])
def test_a_useless_peak_leaves_utilisation_out_of_the_metrics(peak, prepared, tmp_path, monkeypatch):
    monkeypatch.setattr("training.run.matmul_peak", lambda *args: peak)
    train(settings_for(prepared, tmp_path / "run", max_steps=1))
    entry = read_metrics(tmp_path / "run")[0]
    assert entry["tokens_per_second"] > 0
    assert "model_flops_utilisation" not in entry


def test_a_weight_counts_six_operations_and_a_frozen_one_four():
    model = torch.nn.Sequential(torch.nn.Linear(3, 5), torch.nn.Linear(5, 2), torch.nn.Embedding(9, 9))
    model[1].weight.requires_grad_(False)
    assert flops_per_token(model) == 6 * 15 + 4 * 10
