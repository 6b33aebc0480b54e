"""Runs of a few steps spend most of their time on reports; here they ask for less of them."""

from __future__ import annotations

import pytest

import training.run
from training.reporting.logs import PROMPTS


@pytest.fixture(autouse=True)
def few_reports(monkeypatch):
    monkeypatch.setattr(training.run, "PROMPTS", PROMPTS[:1])
    monkeypatch.setattr(training.run, "matmul_peak", lambda *args: 1e11)
