"""Word lists: text files in UTF-8 with one entry per line; blank lines and lines that begin with # are skipped."""

from __future__ import annotations

from pathlib import Path


def numbered_entries(text: str) -> list[tuple[int, str]]:
    """Return (line number, entry) for each entry of a list, without the white space around it."""
    lines = enumerate(map(str.strip, text.splitlines()), 1)
    return [(number, line) for number, line in lines if line and not line.startswith("#")]


def parse_word_list(text: str) -> list[str]:
    """Return the entries of a list, without the white space around them."""
    return [entry for _, entry in numbered_entries(text)]


def read_word_list(path: Path) -> list[str]:
    """Return the entries of the list in a file; a byte order mark is skipped.

    Raises:
        OSError: The file cannot be read.
        UnicodeDecodeError: The file is not UTF-8.
    """
    return parse_word_list(path.read_text(encoding="utf-8-sig"))
