"""Shorter reports: runs of a few steps would spend most of their time on them."""

from __future__ import annotations

import pytest

import training.run
import training.validation
from training.reporting.curves import draw_curves
from training.reporting.samples import PROMPTS


@pytest.fixture(autouse=True)
def few_reports(monkeypatch):
    monkeypatch.setattr(training.validation, "PROMPTS", PROMPTS[:1])
    monkeypatch.setattr(training.validation, "MAX_MESSAGES", 1)
    monkeypatch.setattr(training.run, "matmul_peak", lambda *args: 1e11)
    monkeypatch.setattr(training.run, "draw_curves", lambda *args: None)  # two thirds of the time of a tiny run


@pytest.fixture
def curves(few_reports, monkeypatch):
    """Draws the curves of a run after all."""
    monkeypatch.setattr(training.run, "draw_curves", draw_curves)
