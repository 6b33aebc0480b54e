"""Records: the turns of one dialogue, from a JSON value or from lines of text."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

NOT_TEXT, LONG_LINE = "not_text", "line_too_long"
MANY_CELLS, MANY_VALUES = "too_many_cells", "too_many_values"
NOT_SPEECH, BOT_OPENS = "not_speech", "bot_speaks_first"
LEFT_OUT = (NOT_SPEECH, BOT_OPENS)
"""Reasons of a record whose only turn is one message that reading leaves out; `data_prep.reading.formats.left_out` yields
them."""
MAX_TURNS = 10_000
"""Dialogues are cut after this many turns, so that a file without breaks fits into memory; a row of a table with more
cells is skipped."""
MAX_VALUES = 1 << 19
"""A JSON text with more commas and brackets is skipped: a value of two bytes can take a hundred bytes of memory."""
MAX_DIALOGUE_CHARACTERS = 16 << 20
"""In text and chat logs a dialogue is cut after this many characters; a longer message is skipped."""


class Record(NamedTuple):
    """One record of a file.

    Attributes:
        number: Position of the record in its file, from 1: its line, or its index in an array.
        turns: The turns; None if the record could not be read; the message itself if the reason is one of `LEFT_OUT`.
        reason: Why the record is dropped; None if it holds a dialogue.
    """

    number: int
    turns: list[str] | None
    reason: str | None


class ManyValuesError(ValueError):
    """A JSON text has more than `MAX_VALUES` values."""


def has_many_values(text: str) -> bool:
    """Whether a JSON text may have more than `MAX_VALUES` values."""
    return len(text) > MAX_VALUES and sum(map(text.count, ",[{")) > MAX_VALUES


def load_json(text: str) -> object:
    """Return the value of a JSON text.

    Raises:
        ManyValuesError: The text may have more than `MAX_VALUES` values.
        ValueError, RecursionError: The text is damaged or nested too deeply.
    """
    if has_many_values(text):
        raise ManyValuesError
    return json.loads(text)


NumberedLine = tuple[int, str | None]
"""Number of a line, from 1, and its text; None if the line is not text."""


def merge_speakers(messages: Iterable[tuple[str, str]]) -> list[str]:
    """Join consecutive messages of one speaker to one turn, with a comma after a message that has no end mark.

    Args:
        messages: (speaker, text) pairs.
    """
    turns = []
    for _, group in groupby(messages, key=lambda message: message[0]):
        parts: list[str] = []
        for _, text in group:
            text = text.strip()
            if text and parts:
                parts.append("，" if parts[-1][-1].isalnum() and text[0].isalnum() else " ")
            if text:
                parts.append(text)
        turns.append("".join(parts))
    return turns


def read_text(lines: Iterable[NumberedLine]) -> Iterator[Record]:
    """Yield the dialogues of a text: one turn per line, blank lines between dialogues."""
    turns: list[str] = []
    first = characters = 0
    for number, line in lines:
        is_turn = line is not None and line.strip("\0 \t\r\n")
        if turns and (not is_turn or len(turns) == MAX_TURNS or characters > MAX_DIALOGUE_CHARACTERS):
            yield Record(first, turns, None)
            turns, characters = [], 0
        if line is None:  # an unreadable line: the turn after it does not answer the turn before it
            yield Record(number, None, NOT_TEXT)
        elif is_turn:
            first = first if turns else number
            turns.append(line.rstrip("\r\n"))
            characters += len(line)
    if turns:
        yield Record(first, turns, None)
