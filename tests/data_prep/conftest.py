"""Sets without pictures: the builds of a few dialogues would spend most of their time on them."""

from __future__ import annotations

import pytest

from data_prep import report

draw = report._plot


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch):
    monkeypatch.setattr(report, "_plot", lambda *args, **named: None)


@pytest.fixture
def pictures(no_pictures, monkeypatch):
    """Draws the pictures of the report after all."""
    monkeypatch.setattr(report, "_plot", draw)
