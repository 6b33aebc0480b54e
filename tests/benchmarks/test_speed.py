"""The benchmark runs and measures what it says; its figures are not judged here."""

from __future__ import annotations

import pytest

from tests.benchmarks import speed


def test_alternating_measures_both():
    calls = []
    a, b = speed.alternate(lambda: calls.append("a"), lambda: calls.append("b"), rounds=2)
    assert calls == ["a", "b"] * 3
    assert a >= 0
    assert b >= 0


@pytest.mark.slow
def test_the_table():
    ours, theirs = speed.models()
    assert ours.num_parameters() == pytest.approx(theirs.num_parameters(), rel=0.15)
    rows = speed.run(rounds=1)
    assert all(row.ours > 0 and row.theirs > 0 for row in rows)
    assert speed.to_markdown(rows).count("\n") == len(rows) + 1
