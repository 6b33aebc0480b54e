"""Form of a file, recognised from its beginning; `data_prep.reading.formats` lists the forms."""

from __future__ import annotations

import re
from itertools import pairwise
from pathlib import Path

from chatbot.errors import FileError
from data_prep.reading.chat_logs import is_chat_log, is_program_log
from data_prep.reading.json_shapes import SPLITS, has_time, is_message, to_turns
from data_prep.reading.labelled.labelled_text import is_subtitles, recognise_labels
from data_prep.reading.labelled.prefixes import alternating_signs
from data_prep.reading.records import load_json
from data_prep.reading.tables import delimiter_of, has_columns
from data_prep.reading.thoughts import without_whole_thoughts

HEAD_BYTES = 1 << 16
"""Number of bytes from which the form of a file is recognised; leading white space is skipped."""


def recognise(head: str, path: Path) -> str:
    """Return the form of a file.

    Args:
        head: Text that the file begins with.
        path: The file, for error messages.

    Raises:
        FileError: The file has no form that is known.
    """
    head = head.lstrip("\ufeff\0 \t\r\n")
    line = head.split("\n", 1)[0]
    start = "".join(head[:200].split())
    if start.startswith(("[[", "[{")) and not (start.startswith("[{") and _is_json(line) and "\n[" in head):
        return "array"
    if line.strip() == "[":
        if start.startswith('["'):  # one list of strings on several lines is not an array of dialogues
            raise FileError(f"{path} is one JSON list of strings. Give a list of lists, or one list per line.")
        return "array"
    if start.startswith('["') or (start.startswith("[") and _is_json(line)):
        return "jsonl"
    lines = head_lines(head)
    _refuse_other_files(head, lines, path)
    values = [json_or_none(line) for line in lines[:20] if line.lstrip().startswith(("[", "{"))]
    json_lines = sum(value is not None for value in values)
    if json_lines and 2 * json_lines >= len(lines[1:20]):  # the first line may be cut or a remark
        return _form_of_json_lines([value for value in values if value is not None], len(lines))
    if start.startswith("{"):
        is_cut = len(line) > HEAD_BYTES // 2 and not _FIRST_KEY.match(start)
        return "jsonl" if is_cut else "object"
    if _is_yaml(lines):
        raise FileError(f"{path} is YAML. Give a JSON list of dialogues, or one turn per line.")
    if delimiter_of(lines) or (".csv" in path.name.lower() and has_columns(lines)):
        return "table"
    labels = recognise_labels(lines)
    if labels in ("line", "markdown", "fields", "conv", "stamp"):
        return "labelled"
    if is_chat_log(lines):
        return "chatlog"
    if is_program_log(lines):
        raise FileError(f"{path} is the log of a program, not a chat. Give dialogues.")
    if labels:
        return "labelled"
    if 2 * sum("\t" in line for line in lines) > len(lines):
        return "tsv"
    if signs := alternating_signs(lines):
        raise FileError(
            f"The lines of {path} begin in turn with “{signs[0]}” and “{signs[1]}”, which would be learnt as speech."
            " Write the names of the speakers with a colon, as in 用户：你好."
        )
    listed = sum(line.lstrip().startswith(("- ", "* ", "• ")) for line in lines)
    if listed > 1 and listed * 5 >= len(lines) * 4:
        raise FileError(
            f"{path} is a list with a mark before each line ({listed} of {len(lines)}), in YAML or Markdown. Give a JSON"
            " list of dialogues, or one turn per line without marks."
        )
    timed = sum(_TIMED.search(line) is not None for line in lines)
    if timed > 2 and timed * 3 >= len(lines):
        raise FileError(
            f"{path} has times on {timed} of {len(lines)} lines, but is not an export of a known form."
            " Give one of the forms in data_prep/README.md, or say --format text to read every line as a turn."
        )
    return "text"


_FIRST_KEY = re.compile(r'\{"(?:train|valid|test|name|messages|guild|chats)"')
_MIME = re.compile(r"^mime-version:", re.MULTILINE | re.IGNORECASE)
_YAML_NESTED = re.compile(r"\s*-\s+-\s+[^\s-]")
_YAML_KEY = re.compile(r"\s*(?:-\s+)+(?:role|from|speaker|content|value|text|messages|conversations|turns)\s*:(?:\s|$)")
_YAML_LIST = re.compile(r"(?:conversations?|dialogues?|dialogs?|messages|turns|data|categories)\s*:\s*\r?")


def _is_yaml(lines: list[str]) -> bool:
    """Whether lines are YAML: lists of lists, lists of objects with the keys of messages, or a key above a list."""
    if lines[0].startswith("%YAML") or any(_YAML_NESTED.match(line) for line in lines):
        return True
    keyed = [bool(_YAML_KEY.match(line)) for line in lines]
    nested = [line.startswith((" ", "\t")) for line in lines[1:]]
    above = any(_YAML_LIST.fullmatch(line) and below.lstrip().startswith("- ") for line, below in pairwise(lines))
    return above or any(key and below for key, below in zip(keyed, nested, strict=False))


_TIMED = re.compile(r"(?<!\d)\d{1,2}:\d{2}(?::\d{2})?(?!\d)")


def _form_of_json_lines(values: list[object], lines: int) -> str:
    """Return the form of a file with a JSON value on each line: dialogues, messages, or only one value."""
    if lines == 1 and isinstance(values[0], dict):
        value = values[0]
        is_split = any(isinstance(value.get(key), list) for key in SPLITS)
        return (
            "object"
            if is_split or "chats" in value or (to_turns(value) is None and _holds_messages(value))
            else "jsonl"
        )
    return "messages" if all(is_message(value) for value in values) else "jsonl"


def _holds_messages(value: dict) -> bool:
    """Whether a JSON object holds messages of a chat program: they have times, and some of them are notices."""
    parts = [part[:10] for part in value.values() if isinstance(part, list) and part]
    return any(
        all(isinstance(item, dict) for item in part)
        and 2 * sum(is_message(item) and has_time(item) for item in part) >= len(part)
        for part in parts
    )


def head_lines(head: str) -> list[str]:
    """Return the lines at the beginning of a file that are whole and not blank, at most 200."""
    head = head.lstrip("\ufeff\0 \t\r\n")
    head = head if head.startswith(("[", "{")) else without_whole_thoughts(head)
    return [line for line in head.split("\n")[:-1][:200] or [head] if line.strip()]


def _refuse_other_files(head: str, lines: list[str], path: Path) -> None:
    """Raise FileError for files of unsupported kinds; the message says what to give instead."""
    start = head[:300].lower()
    if start.startswith(("<!doctype html", "<html")) or _MIME.search(head[:2000]):
        raise FileError(f"{path} is a web page. Export the chat as text, CSV or JSON, or save the page as text.")
    if start.startswith(("<?xml", "<xml")):
        raise FileError(f"{path} is XML. Export the chat as text, CSV or JSON.")
    if start.startswith("{\\rtf"):
        raise FileError(f"{path} is rich text. Save it as plain text.")
    if is_subtitles(lines) or start.startswith(("webvtt", "[script info]")):
        raise FileError(
            f"{path} holds subtitles, which do not name the speakers. Give one line per turn and a blank line"
            " between scenes."
        )


def json_or_none(line: str) -> object:
    try:
        return load_json(line)
    except (ValueError, RecursionError):
        return None


def _is_json(line: str) -> bool:
    return json_or_none(line) is not None
