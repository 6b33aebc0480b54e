"""Records of JSON files: dialogues, or messages that form dialogues."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import chain, groupby, islice
from pathlib import Path
from typing import TypeGuard

from chatbot.errors import FileError
from chatbot.text.dialogue import valid_text
from data_prep.reading.json_shapes import SPLITS, TURN_KEYS, is_message, shape_of, text_of, to_message, to_turns
from data_prep.reading.messages import MAX_NOTICE_CHARACTERS, Gap, Message, notice, to_dialogues
from data_prep.reading.recognition import json_or_none
from data_prep.reading.records import MANY_VALUES, NOT_TEXT, ManyValuesError, NumberedLine, Record, load_json

NOT_JSON, DISLIKED = "not_json", "disliked"
FIRST_VALUES = 10
"""Number of elements that are read to decide whether an array holds messages or dialogues."""


def parse_json(number: int, line: str) -> Record:
    try:
        return to_record(number, load_json(line))
    except ManyValuesError:
        return Record(number, None, MANY_VALUES)
    except (ValueError, RecursionError):
        return Record(number, None, NOT_JSON)


def to_record(number: int, value: object) -> Record:
    """Return the record in a JSON value; feedback of the page whose last reply was disliked holds no dialogue."""
    if isinstance(value, dict) and value.get("rating") == "dislike":
        return Record(number, None, DISLIKED)
    turns = to_turns(value)
    turns = None if turns is None else [valid_text(turn) for turn in turns]
    return Record(number, turns, shape_of(value) if turns is None else None)


def read_values(values: Iterable[object], bot: str | None = None) -> Iterator[Record]:
    """Yield the dialogues of an array: every element is a dialogue, or every element is a message of one chat."""
    elements = enumerate(values, 1)
    first = list(islice(elements, FIRST_VALUES))
    everything = chain(first, elements)
    if sum(is_message(value) for _, value in first) * 2 >= max(1, len(first)):
        yield from to_dialogues(_to_messages(everything), bot)
    elif bot is not None:
        raise FileError("The dialogues of a JSON file do not name their speakers, so --bot cannot choose one.")
    else:
        yield from (to_record(number, value) for number, value in everything)


def read_members(
    members: Iterable[tuple[str, object]], part: str | None, bot: str | None, path: Path
) -> Iterator[Record]:
    """Yield the dialogues of one JSON object: of its splits, its messages, or the chats in it."""
    has_records = False
    for key, group in groupby(members, key=lambda member: member[0]):
        values = (value for _, value in group)
        if key in SPLITS:
            if part in (None, key):
                has_records = True
                yield from read_values(values, bot)
        elif key in TURN_KEYS or key == "list":
            has_records = True
            yield from read_values(values, bot)
        elif key == "chats":  # Telegram: all chats of an account
            for chats in values:
                for chat in (chats.get("list") if isinstance(chats, dict) else None) or [chats]:
                    if _is_chat(chat):
                        has_records = True
                        yield from read_values(chat["messages"], bot)
    if not has_records:
        raise FileError(
            f"{path} is one JSON object without dialogues: none of its keys is {', '.join(SPLITS)} or"
            f" {', '.join(TURN_KEYS[:7])}. Give a JSON list of dialogues, or one dialogue per line."
        )


def _is_chat(value: object) -> TypeGuard[dict]:
    """Whether a value is a chat with messages; a chat in which people save notes for themselves is not a dialogue."""
    return isinstance(value, dict) and isinstance(value.get("messages"), list) and value.get("type") != "saved_messages"


def _to_messages(values: Iterable[tuple[int, object]]) -> Iterator[Message | Gap]:
    for number, value in values:
        message = to_message(number, value) if isinstance(value, dict) else None
        if message is not None:
            yield message
        elif isinstance(value, dict):
            kind = value.get("action", value.get("type"))  # Telegram's notices have an action and an empty text
            text = text_of(value) or (kind if isinstance(kind, str) else "")
            yield notice(number, valid_text(text.strip()[:MAX_NOTICE_CHARACTERS]) or "{}")
        else:
            yield Gap(Record(number, None, shape_of(value)))


def message_lines(lines: Iterable[NumberedLine]) -> Iterator[Message | Gap]:
    """Yield the messages of a file with one JSON object per message."""
    for number, line in lines:
        if line is None or not line.strip("\ufeff \t\r\n\0"):
            if line is None:
                yield Gap(Record(number, None, NOT_TEXT))
            continue
        value = json_or_none(line)
        if value is None:
            yield Gap(Record(number, None, NOT_JSON))
        else:
            yield from _to_messages([(number, value)])
