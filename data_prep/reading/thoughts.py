"""Thoughts of reasoning models, which are not speech and are removed from the text.

These are recognised: `<think>…</think>` and tags of other names; `<|begin_of_thought|>…<|end_of_thought|>`; an end without
a beginning, which models write if their template opens the thought; a beginning without an end, in a reply that was cut.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatbot.errors import FileError
from data_prep.reading.records import NumberedLine

MAX_THOUGHT_LINES = 10_000
_TAG = "think|thinking|thought|thoughts|reasoning|analysis|seed:think"
_BEGIN = rf"<(?:{_TAG})>|<\|begin_of_thought\|>|◁think▷"
_END = rf"</(?:{_TAG})>|<\|end_of_thought\|>|◁/think▷"
_BEGINNING, _ENDING = re.compile(_BEGIN, re.IGNORECASE), re.compile(_END, re.IGNORECASE)
_TO_END = rf"(?:{_BEGIN})(?:(?!{_END}).)*(?:(?P<end>{_END})|\Z)\s*"
_THOUGHT = re.compile(rf"(?:(?<!\s)\s++|){_TO_END}", re.DOTALL | re.IGNORECASE)
"""A thought and the white space around it. A match begins only at the first space of a run, and a thought without an end
is one match up to the end of the text: otherwise n spaces or n beginnings would take n² steps."""
_THOUGHT_OF_FILE = re.compile(rf"(?:(?<![ ])[ ]++|){_TO_END}", re.DOTALL | re.IGNORECASE)
_UNOPENED = re.compile(rf"\A.*(?:{_END})\s*", re.DOTALL | re.IGNORECASE)
_CONTROL = re.compile(
    r"<eo[a-z]>|<\|(?:im_end|im_start|endoftext|eot_id|end|(?:begin|end)_of_solution)\|>|</s>", re.IGNORECASE
)


def without_thoughts(text: str) -> str:
    """Return a text without thoughts and without control tokens; empty for a text that is one thought."""
    if "<" not in text and "◁" not in text:
        return text
    return _CONTROL.sub("", _UNOPENED.sub("", _THOUGHT.sub("", text)))


def without_whole_thoughts(text: str) -> str:
    """Return the beginning of a file without the thoughts that begin and end in it."""
    if "<" not in text and "◁" not in text:
        return text
    return _THOUGHT_OF_FILE.sub(lambda match: match[0] if match["end"] is None else "", text)


def join_thoughts(lines: Iterable[NumberedLine], path: Path) -> Iterator[NumberedLine]:
    """Yield lines with each thought of several lines joined to the line where it begins and the line that follows it.

    Args:
        lines: Numbered lines of a file in which a line is a turn or begins one.
        path: The file, for error messages.

    Raises:
        FileError: A thought has no end, or a line only ends one, so that its beginning is not known.
    """
    lines = iter(lines)
    for number, line in lines:
        if line is None or ("<" not in line and "◁" not in line):
            yield number, line
            continue
        if _ENDING.fullmatch(line.strip()):
            raise FileError(
                f"Line {number} of {path} ends a thought of a reasoning model ({line.strip()}) that does not begin."
                " Remove the thoughts, or give JSON with one object per turn."
            )
        parts = [line]
        while _is_open(parts[-1]):
            parts.append(_rest_of_thought(lines, number, path))
        line = "\n".join(parts)
        shown = _THOUGHT.sub("", line)
        if shown == line:
            yield number, line
            continue
        if not shown.strip() or shown.rstrip().endswith((":", "：", ">")):  # the reply is below its thought
            _, below = next(((below, text) for below, text in lines if text is None or text.strip()), (number, ""))
            shown += below or ""
        yield number, shown


def _is_open(line: str) -> bool:
    """Whether the last thought that begins in a line does not end in it."""
    begun = list(_BEGINNING.finditer(line))
    return bool(begun) and not _ENDING.search(line, begun[-1].end())


def _rest_of_thought(lines: Iterator[NumberedLine], number: int, path: Path) -> str:
    """Return the lines up to the end of a thought that begins in line `number`."""
    for count, (_, line) in enumerate(lines):
        if line is not None and _ENDING.search(line):
            return line
        if count == MAX_THOUGHT_LINES:
            break
    raise FileError(
        f"Line {number} of {path} begins a thought of a reasoning model that does not end. Remove the thoughts, or give JSON"
        " with one object per turn."
    )
