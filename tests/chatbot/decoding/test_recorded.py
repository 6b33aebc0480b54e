"""Every method on every mixer, head and layout gives the replies that were recorded before decoding had one loop."""

from __future__ import annotations

import json

import pytest

from tests.chatbot.decoding.recorded import FILE, NAMES, build, replies

RECORDED = json.loads(FILE.read_text(encoding="utf-8"))


def test_the_table_is_wide():
    rows = [row for table in RECORDED.values() for row in table]
    assert len(rows) >= 200
    assert len({tuple(row[0]) for row in rows}) > 150
    assert {row[1] for row in rows} == {"eos", "floor", "limit"}


@pytest.mark.parametrize("name", NAMES)
def test_replies_are_as_recorded(name, tmp_path):
    bot = build(name, tmp_path)
    if bot is None:
        pytest.skip("no C compiler here")
    for actual, expected in zip(replies(name, bot), RECORDED[name], strict=True):
        assert actual[:2] == expected[:2]
        assert actual[2] == pytest.approx(expected[2], abs=2e-3)
