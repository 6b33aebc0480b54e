"""Blind rating sheets: contexts with the replies of all systems in random order, and the key that names the systems."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from chatbot.errors import FileError
from chatbot.evaluation.answering import Context
from chatbot.storage import read_json, replacing, write_json

KEY = "key.json"
REFERENCE, RANDOM = "reference", "random reply"
"""Names of two systems for comparison: the ceiling (the reply of the dialogue's writer) and the floor (a reply to
another context)."""

PAGE = Path(__file__).with_name("sheet.html")
CONTENT = "__SHEET__"
"""Placeholder in the page, which is replaced by the rows."""


@dataclass(frozen=True)
class Row:
    """One context with the distinct replies to it.

    Attributes:
        id: Index of the row, the same in all sheets.
        set: Name of the set of contexts.
        context: The history, oldest turn first; the bot answers its last turn.
        replies: Distinct replies.
        systems: Names of the systems that gave each reply.
    """

    id: int
    set: str
    context: list[str]
    replies: list[str]
    systems: list[list[str]]


@dataclass(frozen=True)
class Key:
    """Key to the sheets, hidden from the judges: which system gave which reply.

    Attributes:
        seed: Seed of the orders on the sheets.
        systems: Names of all systems, in the order of the report.
        rows: All rows.
    """

    seed: int
    systems: list[str]
    rows: list[Row]

    def write(self, folder: Path) -> None:
        """Write the key into a folder."""
        write_json(folder / KEY, asdict(self))

    @classmethod
    def read(cls, folder: Path) -> Key:
        """Read the key of a folder.

        Raises:
            FileError: The folder has no key, or a damaged one.
        """
        content = read_json(folder / KEY, FileError, "write the sheets again with xianliao-evaluate --aptness")
        try:
            rows = [Row(**row) for row in content["rows"]]
            return cls(int(content["seed"]), list(content["systems"]), rows)
        except (KeyError, TypeError, ValueError):
            raise FileError(
                f"{folder / KEY} is not the key of rating sheets."
                " Write the sheets again with xianliao-evaluate --aptness."
            ) from None


def make_rows(
    name: str, contexts: Sequence[Context], replies: Mapping[str, Sequence[str]], first_id: int, seed: int
) -> list[Row]:
    """Return the rows of one set of contexts, with the reference and a random reply among the systems.

    Args:
        name: Name of the set.
        contexts: At least two contexts.
        replies: Replies of every system, one per context.
        first_id: Number of the first row.
        seed: Seed of the random replies.
    """
    references = [context.reference for context in contexts]
    systems = {REFERENCE: references, **replies, RANDOM: other_replies(references, seed)}
    rows = []
    for index, context in enumerate(contexts):
        given: dict[str, list[str]] = {}
        for system, texts in systems.items():
            given.setdefault(texts[index], []).append(system)
        rows.append(Row(first_id + index, name, list(context.turns), list(given), list(given.values())))
    return rows


def other_replies(references: Sequence[str], seed: int) -> list[str]:
    """Return for each context the reference of another context, each used once."""
    order = list(range(len(references)))
    random.Random(seed).shuffle(order)
    others = [""] * len(order)
    for index, position in zip(order, [*order[1:], *order[:1]], strict=True):
        others[index] = references[position]
    return others


def orders(key: Key, sheet: int) -> list[tuple[Row, list[int]]]:
    """Return the rows in the order of a sheet, each with the order of its replies."""
    draw = random.Random(f"{key.seed}/{sheet}")
    rows = list(key.rows)
    draw.shuffle(rows)
    return [(row, draw.sample(range(len(row.replies)), len(row.replies))) for row in rows]


def sheet_lines(key: Key, sheet: int) -> list[dict]:
    """Return, for each row, the part that a judge sees: sheet number, row id, context and replies."""
    return [
        {"sheet": sheet, "id": row.id, "context": row.context, "replies": [row.replies[i] for i in order]}
        for row, order in orders(key, sheet)
    ]


def write_sheets(key: Key, folder: Path, count: int) -> list[Path]:
    """Write `count` sheets, each as JSONL and as an HTML page to rate with the keyboard; return the pages."""
    page = PAGE.read_text(encoding="utf-8")
    pages = []
    for sheet in range(1, count + 1):
        lines = [json.dumps(line, ensure_ascii=False) for line in sheet_lines(key, sheet)]
        data = "[" + ",\n".join(lines) + "]"
        texts = {
            folder / f"sheet-{sheet}.jsonl": "\n".join(lines) + "\n",
            folder / f"sheet-{sheet}.html": page.replace(CONTENT, data.replace("<", "\\u003c")),
        }
        for path, text in texts.items():
            with replacing(path) as temporary:
                temporary.write_text(text, encoding="utf-8")
        pages.append(path)
    return pages
