"""Thirty exports in the forms that programs write, made from the formats' descriptions before the reader was read.

right.json holds what was said in each, or says that the file must be refused.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from chatbot.errors import FileError
from tests.records import read_records

EXPORTS = Path(__file__).with_name("untouched_exports")
RIGHT = json.loads((EXPORTS / "right.json").read_text(encoding="utf-8"))


def without_spaces(dialogues):
    return sorted(["".join(turn.split()) for turn in turns] for turns in dialogues)


@pytest.mark.parametrize("name", RIGHT)
def test_an_export_gives_what_was_said_or_is_refused(name):
    """Every dialogue, in any order, with every turn in its order; no record is left out."""
    if isinstance(RIGHT[name], dict):
        with pytest.raises(FileError, match=r"is a web page\. Export the chat as text"):
            list(read_records(EXPORTS / name))
        return
    records = list(read_records(EXPORTS / name))
    assert [record.reason for record in records if record.turns is None] == []
    assert without_spaces(record.turns for record in records) == without_spaces(RIGHT[name])


def test_there_are_thirty():
    assert {path.name for path in EXPORTS.iterdir()} - {"right.json"} == set(RIGHT)
    assert len(RIGHT) == 30
