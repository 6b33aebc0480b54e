"""64 hostile clients of each kind leave /healthz quick and the memory bounded."""

from __future__ import annotations

import pytest

from tests.attack.hostile import KINDS, attack, table

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def findings(tmp_path_factory):
    found = attack(folder=tmp_path_factory.mktemp("hostile"))
    print(table(found))
    return found


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_clients_delay_nobody(findings, kind):
    assert findings[kind].rounds > 0
    assert findings[kind].p99 <= 100, table(findings)


@pytest.mark.parametrize("kind", KINDS)
def test_hostile_clients_fill_no_memory(findings, kind):
    assert findings[kind].growth <= 300, table(findings)
