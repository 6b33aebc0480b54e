"""The table of attacks has no failure."""

from __future__ import annotations

import pytest

from tests.attack.figures import rows, show


@pytest.mark.slow
@pytest.mark.alone
def test_no_attack_succeeds(tmp_path):
    table = rows(tmp_path)
    print(show(table))
    assert sum(row.attempts for row in table) > 5_000
    assert not [row.name for row in table if row.failures], show(table)
