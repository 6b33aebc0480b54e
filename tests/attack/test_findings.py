"""Each finding of the first attack has tests, and they exist."""

from __future__ import annotations

import ast

import pytest

from tests.attack.findings import BESIDE, FINDINGS
from tests.conftest import ROOT


def test_every_finding_is_in_the_list():
    assert list(FINDINGS) == [f"A{number}" for number in range(1, 14)]


@pytest.mark.parametrize("finding", FINDINGS)
def test_a_finding_has_tests_that_exist(finding):
    words, tests = FINDINGS[finding]
    assert words
    assert len(tests) >= 2
    for test in tests:
        file, name = test.split("::")
        tree = ast.parse((ROOT / "tests" / file).read_text(encoding="utf-8"))
        assert name in {part.name for part in tree.body if isinstance(part, ast.FunctionDef)}, test


def test_the_other_tests_exist():
    assert all((ROOT / "tests" / file).is_file() for files in BESIDE.values() for file in files)
