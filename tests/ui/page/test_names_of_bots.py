"""The name of a bot on the page: the one that xianliao-name gave it, that of its folder, or none."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest

from ui.checkpoints import shown_name


@pytest.mark.parametrize(
    ("record", "folder", "count", "expected"),
    [
        ({"identity": {"name": "阿哲的影子"}}, "azhe", 1, "阿哲的影子"),
        ({"identity": {"name": "阿哲的影子"}}, "default", 2, "阿哲的影子"),
        (None, "azhe", 2, "azhe"),
        (None, "azhe", 1, ""),
        (None, "default", 2, ""),
        ({"identity": {"name": "长" * 41}}, "azhe", 2, "azhe"),
        ({"identity": ["a"]}, "azhe", 2, "azhe"),
        ([1], "azhe", 2, "azhe"),
    ],
)
def test_a_bot_has_the_name_that_it_was_given_or_that_of_its_folder(tmp_path, record, folder, count, expected):
    if record is not None:
        (tmp_path / "naming.json").write_text(json.dumps(record), encoding="utf-8")
    assert shown_name(SimpleNamespace(folder=tmp_path, name=folder), count) == expected
