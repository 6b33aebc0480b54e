"""The table of attacks has no failure."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from tests.attack.figures import (
    Table,
    by_killing,
    on_a_server,
    on_credentials,
    on_files_and_models,
    on_the_training_view,
    show,
)

PARTS: dict[str, tuple[Callable[[Path], Table], int]] = {
    "a server": (on_a_server, 6_000),
    "the training view": (on_the_training_view, 1_200),
    "credentials": (on_credentials, 1_300),
    "files and models": (on_files_and_models, 500),
    "kills": (partial(by_killing, times=1, prepare_kills=6), 20),
}
"""Attacks, and how many there are at least. The command kills three runs and twelve builds, these tests one and six:
tests/training/test_resume.py kills two more runs, and tests/data_prep/test_pipeline.py four more builds."""


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_no_attack_succeeds(part, tmp_path):
    attack, least = PARTS[part]
    table = attack(tmp_path)
    print(show(table))
    assert sum(row.attempts for row in table) > least
    assert not [row.name for row in table if row.failures], show(table)
