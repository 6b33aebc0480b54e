"""Replies side by side on the page: a card for each context, a row for each reply, a column for each checkpoint."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

from chatbot.evaluation.report.markdown import one_line
from chatbot.evaluation.report.tables import PEOPLE, Report, speakers_of
from chatbot.evaluation.report.words import both

Example = dict[str, Any]
OPEN_ROWS, FEWEST = 48, 2
"""Number of rows of replies from which further contexts are folded, and the number of contexts that are never folded."""
MAX_CHARACTERS = 400


def examples(report: Report) -> str:
    """Return the contexts with all replies; those after the first `OPEN_ROWS` rows are folded."""
    names = [part["name"] for part in report["checkpoints"]]
    cards = [_card(example, names) for example in report["examples"]]
    count = rows = 0
    for card in cards:
        rows += card.count("<tr>")
        count += rows <= OPEN_ROWS or count < FEWEST
    shown, folded = cards[:count], cards[count:]
    more = f"<summary>{both(f'More contexts: {len(folded)}')}</summary>{_grid(folded, len(names))}"
    return _grid(shown, len(names)) + f'<details class="legend">{more}</details>' * bool(folded)


def _grid(cards: Sequence[str], checkpoints: int) -> str:
    return f'<div class="examples{" wide" if checkpoints > 2 else ""}">{"".join(cards)}</div>'


def _card(example: Example, names: Sequence[str]) -> str:
    """Return a context with all replies. Methods whose replies are equal share a row."""
    turns = "".join(
        f'<p><span class="reason">{both(speaker)}</span>'
        f' <span lang="zh-CN">{escape(one_line(turn, MAX_CHARACTERS))}</span></p>'
        for speaker, turn in zip(speakers_of(example["context"]), example["context"], strict=True)
    )
    by_method: dict[str, dict[str, str]] = {}
    for checkpoint, method, text, reason in example["replies"]:
        by_method.setdefault(method, {})[checkpoint] = _reply(text, reason)
    rows: dict[tuple[str, ...], list[str]] = {}
    for method, replies in by_method.items():
        rows.setdefault(tuple(replies.get(name, "") for name in names), []).append(method)
    head = ""
    if len(names) > 1:
        columns = "".join(f'<th scope="col">{escape(name)}</th>' for name in names)
        head = f"<tr><td></td>{columns}</tr>"
    body = _row(both(PEOPLE), [_reply(example["reference"], "eos")], len(names))
    body += "".join(_row("".join(map(_chip, methods)), cells) for cells, methods in rows.items())
    return f'<div class="example">{turns}<table><tbody>{head}{body}</tbody></table></div>'


def _chip(method: str) -> str:
    return f'<span class="method">{escape(method)}</span> '


def _reply(text: str, reason: object) -> str:
    """Return a reply, and why it ended if the model did not end it."""
    ending = "" if reason == "eos" else f' <span class="reason">{both(str(reason))}</span>'
    return escape(one_line(text, MAX_CHARACTERS)) + ending


def _row(name: str, replies: Sequence[str], columns: int = 1) -> str:
    span = f' colspan="{columns}"' if columns > 1 else ""
    cells = "".join(f'<td lang="zh-CN"{span}>{reply}</td>' for reply in replies)
    return f'<tr><th scope="row">{name}</th>{cells}</tr>'
