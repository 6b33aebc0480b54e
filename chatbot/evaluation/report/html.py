"""The report as one self-contained HTML page: verdict, tables that can be sorted, plots, replies side by side.

It holds all its texts in English and Chinese and shows those of the reader's language.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from chatbot.evaluation.report import plots
from chatbot.evaluation.report.markdown import BEST, IN_WORDS, notes, one_line
from chatbot.evaluation.report.tables import (
    PEOPLE,
    UNITS,
    Cell,
    Column,
    Report,
    Table,
    ending_table,
    methods_of,
    model_table,
    reply_table,
    settings_text,
    turn_table,
)
from chatbot.evaluation.report.words import attribute, both, both_settings, chinese

STYLE, SCRIPT, CHOICE = (Path(__file__).with_name(name) for name in ("page.css", "page.js", "language.js"))
SWITCH = (
    '<button type="button" id="language"><span class="en" lang="zh-CN">中文</span>'
    '<span class="zh" lang="en">English</span></button>'
)
ROWS = {PEOPLE, UNITS, "witten bell trigram", "unigram"}
"""Names of rows that are not names of methods or checkpoints."""


def to_html(report: Report) -> str:
    """Return the whole report as an HTML page without external files."""
    names = ", ".join(part["name"] for part in report["checkpoints"])
    title = f"Evaluation of {names} on {report['data']}"
    methods = methods_of(report)
    parts = [
        f"<header><h1>{both(title)}</h1>{SWITCH}</header>",
        f'<section class="verdict" {attribute("aria-label", "verdict")}>{_list(report["verdict"])}</section>',
        *(f'<p class="warning" role="note">{both(line)}</p>' for line in report["warnings"]),
        _heading_of("In plain words"),
        _list([*IN_WORDS, BEST.replace("Bold", "Bold on colour"), "A click on a heading sorts the table by it."]),
        _heading_of("How well does it predict what people say?"),
        _table(model_table(report), "nats/unit of all turns; less is better"),
        _table(turn_table(report), "nats/unit by turn of the dialogue"),
        _heading_of("Does every reply end?"),
        _table(ending_table(report), "Ends and repetitions of each method"),
        _panels(
            "Replies without an end after L tokens: this method, and in grey the range of all methods. The axes are"
            " logarithmic; 0 is drawn at the bottom.",
            plots.termination_curves(methods, max(report["lengths"])),
        ),
        _heading_of("Likeness and diversity"),
        _table(reply_table(report), "Likeness to the replies of people, and variety"),
        _wide(
            "Quality and diversity with 95 % intervals; dotted: people",
            plots.quality_and_diversity(methods, report["reference"], len(report["checkpoints"])),
        ),
        _heading_of("Lengths"),
        _panels(
            "Lengths of the replies in characters; grey: people", plots.length_histograms(methods, report["reference"])
        ),
        _heading_of("How the numbers were measured"),
        _list(notes(report)),
        _heading_of("Settings"),
        _settings(methods),
        _heading_of("Replies side by side"),
        *(_example(example, len(report["checkpoints"]) == 1) for example in report["examples"]),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f'<title data-zh="{escape(chinese(title))}">{escape(title)}</title>'
    body = "\n".join(parts)
    style, script, choice = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT, CHOICE))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}\n<style>{style}</style><script>{choice}</script></head>\n'
        f"<body><main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )


def _heading_of(text: str) -> str:
    return f"<h2>{both(text)}</h2>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{both(line)}</li>" for line in lines) + "</ul>"


def _table(table: Table, caption: str) -> str:
    head = "".join(_heading(column, len(table.rows) > 1) for column in table.columns)
    body = "".join(_row(row) for row in table.rows)
    foot = "" if table.last is None else f"<tfoot>{_row(table.last)}</tfoot>"
    content = f"<caption>{both(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}"
    return _scroll(f"<table>{content}</table>", caption)


def _scroll(content: str, label: str) -> str:
    """Return content that scrolls sideways, also by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" {attribute("aria-label", label)}>{content}</div>'


def _heading(column: Column, sorts: bool) -> str:
    text = both(column.heading)
    meaning = f" {attribute('title', column.meaning)}" if column.meaning else ""
    if not sorts:
        return f'<th scope="col"{meaning}>{text}</th>'
    first = "descending" if column.goal == "high" else "ascending"
    button = f'<button type="button"{meaning}>{text}</button>'
    return f'<th scope="col" data-first="{first}">{button}</th>'


def _row(cells: Sequence[Cell]) -> str:
    first, *rest = cells
    return f'<tr><th scope="row">{_name(first)}</th>{"".join(map(_cell, rest))}</tr>'


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
    spread = f" <small>{escape(cell.spread)}</small>" if cell.spread else ""
    best = ' class="best"' if cell.is_best else ""
    text = both(cell.text) if cell.text.isalpha() else escape(cell.text)
    return f"<td{value}{best}>{text}{spread}</td>"


def _name(cell: Cell) -> str:
    """Return the name of a row: that of people and of a baseline in both languages, that of a method as it is."""
    return both(cell.text) if cell.text in ROWS else escape(cell.text)


def _panels(caption: str, panels: Sequence[tuple[str, str]]) -> str:
    """Return one small plot a method, side by side."""
    figures = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in panels)
    return f'<p class="note">{both(caption)}</p><div class="panels">{figures}</div>'


def _wide(caption: str, svg: str | None) -> str:
    if svg is None:
        return ""
    return f'<figure class="wide"><figcaption>{both(caption)}</figcaption>{_scroll(svg, caption)}</figure>'


def _settings(methods: Sequence[tuple[str, Report]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{both_settings(settings_text(row["settings"]))}</td></tr>'
        for name, row in methods
    )
    return _scroll(f'<table class="words"><tbody>{rows}</tbody></table>', "Settings")


def _example(example: dict, is_single: bool) -> str:
    """Return one context with all replies. If there is only one checkpoint, its name is omitted."""
    turns = "".join(f'<p lang="zh-CN">{escape(one_line(turn, 400))}</p>' for turn in example["context"])
    rows = [(both(PEOPLE), example["reference"], "eos")]
    rows += [
        (escape(name if is_single else f"{checkpoint}: {name}"), text, reason)
        for checkpoint, name, text, reason in example["replies"]
    ]
    cells = "".join(
        f'<tr><th scope="row">{name}</th><td lang="zh-CN">{escape(one_line(text, 400))}'
        + ("" if reason == "eos" else f' <span class="reason">{both(str(reason))}</span>')
        + "</td></tr>"
        for name, text, reason in rows
    )
    return f'<div class="example">{turns}<table><tbody>{cells}</tbody></table></div>'
