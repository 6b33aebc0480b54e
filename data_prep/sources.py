"""Reading dialogues in the forms people have them; the form is recognised from the content.

| form | looks like |
|---|---|
| array | `[["你 好", "你 好 呀"], …]`: LCCC as downloaded, one JSON array of arrays |
| jsonl | `["你好", "你好呀"]` a line: LCCC on the hub, our interchange format |
| tsv | `你好<TAB>你好呀` a line |
| text | a turn a line, an empty line between dialogues |
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from itertools import chain
from pathlib import Path

from chatbot.dialogue_files import FileError, read_lines
from chatbot.errors import first_line

FORMS = ("array", "jsonl", "tsv", "text")
SUFFIXES = (".json", ".jsonl", ".tsv", ".txt", ".gz", ".xz")


def list_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Files named by the inputs; a folder stands for all its dialogue files, sorted by path.

    Raises:
        FileError: An input does not exist, or a folder holds nothing to read.
    """
    files: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            found = sorted(file for file in entry.rglob("*") if file.is_file() and file.name.endswith(SUFFIXES))
            if not found:
                raise FileError(f"The folder {entry} holds no file ending in {', '.join(SUFFIXES)}.")
            files += found
        elif entry.exists():
            files.append(entry)
        else:
            raise FileError(f"{entry} does not exist; check the path.")
    return files


def read_raw(path: Path, form: str = "auto") -> Iterator[object]:
    """Raw dialogues of a file, in order; a good one is a list of strings, the others are for `clean` to count.

    Args:
        path: The file, plain, .gz or .xz.
        form: One of `FORMS`, or `auto`.

    Raises:
        FileError: The file cannot be read, is empty or has another shape.
    """
    lines = read_lines(path)
    start: list[str] = []
    for line in lines:
        start.append(line)
        if line.strip():
            break
    else:
        raise FileError(f"{path} is empty; give a file with dialogues in it.")
    head = start[-1]
    lines = chain(start, lines)
    form = recognise(head, path) if form == "auto" else form
    if form == "array":
        yield from _read_array("".join(lines), path)
    elif form == "jsonl":
        yield from _read_jsonl(lines, path)
    elif form == "tsv":
        yield from (line.rstrip("\r\n").split("\t") for line in lines if line.strip())
    else:
        yield from _read_text(lines)


def recognise(head: str, path: Path) -> str:
    """The form of a file, from its first line with anything in it.

    Raises:
        FileError: It is JSON of a shape that holds no dialogues.
    """
    start = "".join(head[:200].split())
    if start.startswith("[["):
        return "array"
    if start == "[":
        return "array"
    if start.startswith('["') or (start.startswith("[") and _is_json(head)):
        return "jsonl"
    if start.startswith("{"):
        raise FileError(f"{path} holds JSON objects; give a JSON list of strings for each dialogue.")
    return "tsv" if "\t" in head else "text"


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _read_array(text: str, path: Path) -> Iterator[object]:
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FileError(f"{path} is not complete JSON ({first_line(error)}); fetch it again.") from None
    except RecursionError:
        raise FileError(f"{path} nests JSON lists too deeply to hold dialogues.") from None
    if not isinstance(value, list) or not any(isinstance(item, list) for item in value):
        raise FileError(f"{path} is not a JSON array of dialogues; give a list of lists of strings.")
    yield from value


def _read_jsonl(lines: Iterable[str], path: Path) -> Iterator[object]:
    for number, line in enumerate(lines, 1):
        if line.strip():
            try:
                yield json.loads(line)
            except (ValueError, RecursionError):
                raise FileError(
                    f"{path} line {number} is not complete JSON; mend that line, or give --format text if it is none."
                ) from None


def _read_text(lines: Iterable[str]) -> Iterator[list[str]]:
    turns: list[str] = []
    for line in chain(lines, [""]):
        if line.strip():
            turns.append(line.rstrip("\r\n"))
        elif turns:
            yield turns
            turns = []
