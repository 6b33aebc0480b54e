"""Records: the turns of a dialogue as one JSON value or some lines of text hold them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import groupby
from typing import NamedTuple

NOT_TEXT, LONG_LINE = "not_text", "line_too_long"
MAX_TURNS = 10_000
"""In text and chat logs a dialogue is cut after this many turns, so that a file without gaps is not held in memory."""
MAX_DIALOGUE_CHARACTERS = 16 << 20
"""In text and chat logs a dialogue is cut after this many characters; a longer message is skipped."""

_TURN_KEYS = ("dialog", "dialogue", "turns", "utterances", "messages", "conversations", "conversation")
_TEXT_KEYS, _SPEAKER_KEYS = ("content", "value", "text", "utterance"), ("role", "from", "speaker", "name")
_QUESTION_KEYS = ("instruction", "question", "query", "prompt", "input")
_ANSWER_KEYS = ("output", "answer", "response", "completion")
_NOT_SPOKEN = ("system", "tool", "function", "observation", "function_call")


class Record(NamedTuple):
    """One record of a file.

    Attributes:
        number: Number of the record in its file, from 1: its line, or its place in an array.
        turns: The turns, or None if the record holds no dialogue.
        reason: Why it holds none; None if it holds one.
    """

    number: int
    turns: list[str] | None
    reason: str | None


NumberedLine = tuple[int, str | None]
"""Number of a line, from 1, and its text; None if the line is not text."""


def to_turns(value: object) -> list[str] | None:
    """Return the turns of a JSON value, or None if it is not a dialogue."""
    if isinstance(value, dict):
        lists = (value[key] for key in _TURN_KEYS if isinstance(value.get(key), list))
        turns = next(lists, None)
        value = _question_and_answer(value) if turns is None else turns
    if not isinstance(value, list):
        return None
    if all(isinstance(turn, str) for turn in value):
        return value
    messages: list[tuple[str, str]] = []
    for turn in value:
        if not isinstance(turn, dict):
            return None
        text, speaker = _first_string(turn, _TEXT_KEYS), _first_string(turn, _SPEAKER_KEYS)
        if text is None or speaker is None:
            return None
        if speaker.lower() not in _NOT_SPOKEN:
            messages.append((speaker, text))
    return merge_speakers(messages)


def _first_string(value: dict, keys: Iterable[str]) -> str | None:
    return next((value[key] for key in keys if isinstance(value.get(key), str)), None)


def _question_and_answer(value: dict) -> list[str] | None:
    """Return the turns of a record with one question, its answer and perhaps earlier pairs, in the form of Alpaca."""
    questions = [value[key] for key in _QUESTION_KEYS if isinstance(value.get(key), str)]
    answer = _first_string(value, _ANSWER_KEYS)
    if not questions or answer is None:
        return None
    history = [turn for pair in value.get("history") or () if isinstance(pair, list) for turn in pair]
    turns = [*history, "\n".join(filter(None, questions)), answer]
    return turns if all(isinstance(turn, str) for turn in turns) else None


def merge_speakers(messages: Iterable[tuple[str, str]]) -> list[str]:
    """Return one turn for consecutive messages of one speaker, with a comma where a sentence is not closed.

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
        if line is None:  # the turn after it does not answer the turn before it
            yield Record(number, None, NOT_TEXT)
        elif is_turn:
            first = first if turns else number
            turns.append(line.rstrip("\r\n"))
            characters += len(line)
    if turns:
        yield Record(first, turns, None)
