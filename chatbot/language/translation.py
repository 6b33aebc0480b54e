"""Language of the terminal: English, or Chinese if the locale is Chinese.

The code writes its messages in English. The catalogue `zh.json` maps them to Chinese only when the terminal shows them,
so Python, logs and the API always get the English text. In the catalogue, `{0}`, `{1}` … stand for the values inside a
message: `{0} does not exist. Check the path.` matches this message for any path.
"""

from __future__ import annotations

import functools
import json
import locale
import os
import re
import sys
from pathlib import Path

CATALOGUE = Path(__file__).with_name("zh.json")
VARIABLES = ("XIANLIAO_LANG", "LC_ALL", "LC_MESSAGES", "LANG")
"""Environment variables that name the language; the first that is not empty counts."""
REPORT = "report"
"""Section of the catalogue with the texts of an evaluation's page."""
MAX_WORD_CHARACTERS = 300
"""Maximum length of a word in a message: of characters without a space, such as a path."""
_LONG_WORD = re.compile(rf"\S{{{MAX_WORD_CHARACTERS + 1},}}")
_VALUE = re.compile(r"\{(\d+)\}")


def is_chinese() -> bool:
    """Whether the terminal speaks Chinese."""
    named = next((value for name in VARIABLES if (value := os.environ.get(name))), None)
    if named is None:
        named = locale.getlocale()[0] or ""  # Windows has no such variables; it calls the language "Chinese (…)_China"
    return named.lower().startswith(("zh", "chinese"))


def translate(text: str) -> str:
    """Return a help text or a message in the language of the terminal; unknown texts are returned unchanged."""
    return to_chinese(text) if is_chinese() else text


def announce(text: str) -> None:
    """Write a line to stderr at once, translated: what a command does in the next seconds or minutes, such as loading."""
    print(printable(translate(shortened(text))), file=sys.stderr, flush=True)


def labelled(label: str, message: str) -> str:
    """Return a message after its label (`error: `, `warning: `), both in the language of the terminal.

    A message may quote a name of any length, which is shortened. It may also quote the name or the content of a file from
    elsewhere, which must not steer the terminal.
    """
    return printable(translate(label) + translate(shortened(message)))


def shortened(message: str) -> str:
    """Return an English message without the middle of its very long words, such as a path of thousands of letters."""
    return _LONG_WORD.sub(lambda word: f"{word[0][: MAX_WORD_CHARACTERS // 2]}…{word[0][-50:]}", message)


def printable(text: str) -> str:
    """Return a text in which controls and marks that change the direction of writing are escaped."""
    return "".join(c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text)


def to_chinese(text: str) -> str:
    """Return the Chinese for a text that is a catalogue entry, several joined by semicolons, or `label: entry`."""
    label, colon, rest = text.partition(": ")
    if colon and " " not in label and label in read_catalogue():
        return f"{read_catalogue()[label]}：{to_chinese(rest)}"
    return read_catalogue().get(text) or _listed(text) or _by_entry(text) or text


def _listed(text: str) -> str | None:
    """Return the Chinese for faults joined by semicolons, with or without a full stop; None if one has no entry."""
    chinese = _all_known(tuple(text.removesuffix(".").split("; ")))
    return None if chinese is None else "；".join(chinese) + "。" * text.endswith(".")


@functools.lru_cache(1024)  # without this cache, each further part could double the time
def _all_known(parts: tuple[str, ...]) -> list[str] | None:
    """Return the Chinese for parts, of which one entry may cover several in a row; None if a part has no entry."""
    if not parts:
        return []
    for count in range(1, len(parts) + 1):
        chinese = _by_entry("; ".join(parts[:count]))
        if chinese is not None and (rest := _all_known(parts[count:])) is not None:
            return [chinese, *rest]
    return None


def _by_entry(text: str) -> str | None:
    """Return the Chinese of the entry that matches the whole text; of several, the one with the longest fixed text."""
    if text in read_catalogue():
        return read_catalogue()[text]
    fixed = _fixed_words()
    possible = [english for english, parts in fixed.items() if all(part in text for part in parts)]
    for english in sorted(possible, key=lambda english: -sum(map(len, fixed[english]))):
        if match := re.fullmatch("(.*?)".join(map(re.escape, fixed[english])), text, re.DOTALL):
            return read_catalogue()[english].format(*map(to_chinese, match.groups()))
    label, colon, rest = text.partition(": ")
    chinese = _by_entry(rest) if colon and "; " not in label else None
    return None if chinese is None else f"{label}：{chinese}"


@functools.cache
def _fixed_words() -> dict[str, list[str]]:
    """Return the text around the values of every entry that has values."""
    return {english: _VALUE.split(english)[::2] for english in read_catalogue() if "{0}" in english}


@functools.cache
def read_catalogue() -> dict[str, str]:
    """Return a dictionary from every English text of the terminal to its Chinese."""
    sections = _read_sections()
    return {
        english: chinese for name, section in sections.items() if name != REPORT for english, chinese in section.items()
    }


def report_texts() -> dict[str, str]:
    """Return the Chinese of the texts of an evaluation's page (`chatbot.evaluation.report.words`), by English text.

    These texts are not in `read_catalogue`: its entries also translate the values inside messages, and a value may
    happen to be a short word of the page, such as `people`.
    """
    return _read_sections()[REPORT]


@functools.cache
def _read_sections() -> dict[str, dict[str, str]]:
    return json.loads(CATALOGUE.read_text(encoding="utf-8"))
