"""The report as one self-contained HTML page: verdict, replies side by side, tables that can be sorted, plots.

It holds all its texts in English and Chinese and shows those of the reader's language. Long parts are folded.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from chatbot.evaluation.report import plots
from chatbot.evaluation.report.examples import examples
from chatbot.evaluation.report.markdown import BEST, IN_WORDS, notes, title_of
from chatbot.evaluation.report.tables import (
    Cell,
    Column,
    Report,
    Table,
    ending_table,
    is_word,
    meanings,
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
OPEN_ROWS, OPEN_PANELS = 12, 6
"""Longest table and largest number of small plots that are not folded."""


def to_html(report: Report) -> str:
    """Return the whole report as an HTML page without external files."""
    title, methods, checkpoints = title_of(report), methods_of(report), len(report["checkpoints"])
    is_short, is_sparse = len(methods) <= OPEN_ROWS, len(methods) <= OPEN_PANELS
    endings = plots.termination_curves(methods, max(report["lengths"]))
    lengths = plots.length_histograms(methods, report["reference"])
    parts = [
        f"<header><h1>{both(title)}</h1>{SWITCH}</header>",
        f'<section class="verdict" {attribute("aria-label", "verdict")}>{_list(report["verdict"])}</section>',
        *(f'<p class="warning" role="note">{both(line)}</p>' for line in report["warnings"]),
        f"<h2>{both('Replies side by side')}</h2>",
        examples(report),
        _fold("Decoding methods", True, _methods(report["methods"])),
        _fold("How to read the numbers", False, _list([*IN_WORDS, BEST.replace("Bold", "Bold on colour"), SORTING])),
        _fold("Does every reply end?", is_short, _table(ending_table(report), "Ends and repetitions of each method")),
        _fold("When the replies end", is_sparse, _panels(CURVES, endings)),
        _fold(
            "Likeness and diversity",
            is_short,
            _table(reply_table(report), "Likeness to the replies of people, and variety"),
            _wide(PICTURE, plots.quality_and_diversity(methods, report["reference"], checkpoints), is_sparse),
        ),
        _fold("Lengths", is_sparse, _panels("Lengths of the replies in characters; grey: people", lengths)),
        _fold(
            "How well does it predict what people say?",
            checkpoints <= OPEN_ROWS,
            _table(model_table(report), "nats/unit of all turns; less is better"),
            _table(turn_table(report), "nats/unit by turn of the dialogue"),
        ),
        _fold("How the numbers were measured", False, _list(notes(report))),
        _fold("Settings", False, _settings(methods)),
    ]
    head = '<meta charset="utf-8"><meta name="viewport" content="width=device-width">'
    head += f'<title data-zh="{escape(chinese(title))}">{escape(title)}</title>'
    body = "\n".join(parts)
    style, script, choice = (path.read_text(encoding="utf-8") for path in (STYLE, SCRIPT, CHOICE))
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}\n<style>{style}</style><script>{choice}</script></head>\n'
        f"<body><main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )


PICTURE = "Quality and diversity with 95 % intervals; dotted: people"
SORTING = "A click on a heading sorts the table by it."
CURVES = (
    "Replies without an end after L tokens: this method, and in grey the range of all methods. The axes are"
    " logarithmic; 0 is drawn at the bottom."
)


def _fold(heading: str, is_open: bool, *content: str) -> str:
    """Return a part of the page that a click on its heading folds and unfolds."""
    summary = f"<summary><h2>{both(heading)}</h2></summary>"
    return f"<details{' open' if is_open else ''}>{summary}{''.join(content)}</details>"


def _methods(about: dict[str, str]) -> str:
    """Return the explanations of the methods."""
    rows = "".join(f"<dt>{escape(name)}</dt><dd>{both(text)}</dd>" for name, text in about.items())
    return f"<dl>{rows}</dl>"


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{both(line)}</li>" for line in lines) + "</ul>"


def _table(table: Table, caption: str) -> str:
    """Return a table with its caption, and a folded list of what its columns mean."""
    head = "".join(_heading(column, len(table.rows) > 1) for column in table.columns)
    body = "".join(_row(row) for row in table.rows)
    foot = "" if table.last is None else f"<tfoot>{_row(table.last)}</tfoot>"
    content = f"<caption>{both(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}"
    entries = "".join(
        f"<dt>{', '.join(map(both, headings))}</dt><dd>{both(text)}</dd>" for headings, text in meanings(table)
    )
    legend = f"<summary>{both('What the columns mean')}</summary><dl>{entries}</dl>"
    note = f'<p class="note">{both(table.note)}</p>' if table.note else ""
    return (
        _scroll(f"<table>{content}</table>", caption)
        + note
        + f'<details class="legend">{legend}</details>' * bool(entries)
    )


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
    text = both(cell.text) if is_word(cell) else escape(cell.text)
    return f"<td{value}{best}>{text}{spread}</td>"


def _name(cell: Cell) -> str:
    """Return the name of a row: that of people and of a baseline in both languages, that of a method as it is."""
    return both(cell.text) if is_word(cell) else escape(cell.text)


def _panels(caption: str, panels: Sequence[tuple[str, str]]) -> str:
    """Return one small plot a method, side by side."""
    figures = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in panels)
    return f'<p class="note">{both(caption)}</p><div class="panels">{figures}</div>'


def _wide(caption: str, svg: str | None, is_open: bool) -> str:
    """Return a plot as wide as the page, folded below its caption unless `is_open`."""
    if svg is None:
        return ""
    content = _scroll(svg, caption)
    if is_open:
        return f'<figure class="wide"><figcaption>{both(caption)}</figcaption>{content}</figure>'
    return f'<details class="legend wide"><summary>{both(caption)}</summary>{content}</details>'


def _settings(methods: Sequence[tuple[str, Report]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{both_settings(settings_text(row["settings"]))}</td></tr>'
        for name, row in methods
    )
    return _scroll(f'<table class="words"><tbody>{rows}</tbody></table>', "Settings")
