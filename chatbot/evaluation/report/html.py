"""The report as one self-contained HTML page: verdict, tables that can be sorted, plots, replies side by side."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path

from chatbot.evaluation.report import plots
from chatbot.evaluation.report.markdown import BEST, IN_WORDS, notes, one_line
from chatbot.evaluation.report.tables import (
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
from chatbot.language.translation import to_chinese

STYLE = Path(__file__).with_name("page.css")
SCRIPT = Path(__file__).with_name("page.js")


def to_html(report: Report) -> str:
    """Return the whole report as an HTML page without external files."""
    names = ", ".join(part["name"] for part in report["checkpoints"])
    title = escape(f"{names} on {report['data']}")
    methods = methods_of(report)
    parts = [
        f"<h1>{title}</h1>",
        _verdict(report["verdict"]),
        *(
            f'<p class="warning" role="note">{escape(line)}<br><span lang="zh">{escape(to_chinese(line))}</span></p>'
            for line in report["warnings"]
        ),
        "<h2>In plain words</h2>",
        _list([*IN_WORDS, BEST.replace("Bold", "Bold on colour"), "A click on a heading sorts the table by it."]),
        "<h2>How well does it predict what people say?</h2>",
        _table(model_table(report), "nats/unit of all turns; less is better"),
        _table(turn_table(report), "nats/unit by turn of the dialogue"),
        "<h2>Does every reply end?</h2>",
        _table(ending_table(report), "Ends and repetitions of each method"),
        _panels(
            "Replies without an end after L tokens: this method, and in grey the range of all methods. The axes are"
            " logarithmic; 0 is drawn at the bottom.",
            plots.termination_curves(methods, max(report["lengths"])),
        ),
        "<h2>Likeness and diversity</h2>",
        _table(reply_table(report), "Likeness to the replies of people, and variety"),
        _wide(
            "Quality and diversity with 95 % intervals; dotted: people",
            plots.quality_and_diversity(methods, report["reference"], len(report["checkpoints"])),
        ),
        "<h2>Lengths</h2>",
        _panels(
            "Lengths of the replies in characters; grey: people", plots.length_histograms(methods, report["reference"])
        ),
        "<h2>How the numbers were measured</h2>",
        _list(notes(report)),
        "<h2>Settings</h2>",
        _settings(methods),
        "<h2>Replies side by side</h2>",
        *(_example(example, len(report["checkpoints"]) == 1) for example in report["examples"]),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(parts)
    style, script = STYLE.read_text(encoding="utf-8"), SCRIPT.read_text(encoding="utf-8")
    return (
        f'<!doctype html>\n<html lang="en"><head>{head}\n<style>{style}</style></head>\n'
        f"<body><main>\n{body}\n</main><script>{script}</script></body></html>\n"
    )


def _verdict(lines: Sequence[str]) -> str:
    """Return the verdict in English and Chinese."""
    chinese = "".join(f"<li>{escape(to_chinese(line))}</li>" for line in lines)
    return f'<section class="verdict" aria-label="verdict">{_list(lines)}<ul lang="zh">{chinese}</ul></section>'


def _list(lines: Sequence[str]) -> str:
    return "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in lines) + "</ul>"


def _table(table: Table, caption: str) -> str:
    head = "".join(_heading(column, len(table.rows) > 1) for column in table.columns)
    body = "".join(_row(row) for row in table.rows)
    foot = "" if table.last is None else f"<tfoot>{_row(table.last)}</tfoot>"
    content = f"<caption>{escape(caption)}</caption><thead><tr>{head}</tr></thead><tbody>{body}</tbody>{foot}"
    return _scroll(f"<table>{content}</table>", caption)


def _scroll(content: str, label: str) -> str:
    """Return content that scrolls sideways, also by keyboard."""
    return f'<div class="scroll" tabindex="0" role="region" aria-label="{escape(label)}">{content}</div>'


def _heading(column: Column, sorts: bool) -> str:
    text = escape(column.heading)
    if not sorts:
        return f'<th scope="col" title="{escape(column.meaning)}">{text}</th>'
    first = "descending" if column.goal == "high" else "ascending"
    button = f'<button type="button" title="{escape(column.meaning)}">{text}</button>'
    return f'<th scope="col" data-first="{first}">{button}</th>'


def _row(cells: Sequence[Cell]) -> str:
    first, *rest = cells
    return f'<tr><th scope="row">{escape(first.text)}</th>{"".join(map(_cell, rest))}</tr>'


def _cell(cell: Cell) -> str:
    value = "" if cell.value is None else f' data-value="{cell.value:.6g}"'
    spread = f" <small>{escape(cell.spread)}</small>" if cell.spread else ""
    best = ' class="best"' if cell.is_best else ""
    return f"<td{value}{best}>{escape(cell.text)}{spread}</td>"


def _panels(caption: str, panels: Sequence[tuple[str, str]]) -> str:
    """Return one small plot a method, side by side."""
    figures = "".join(f"<figure><figcaption>{escape(name)}</figcaption>{svg}</figure>" for name, svg in panels)
    return f'<p class="note">{escape(caption)}</p><div class="panels">{figures}</div>'


def _wide(caption: str, svg: str | None) -> str:
    if svg is None:
        return ""
    return f'<figure class="wide"><figcaption>{escape(caption)}</figcaption>{_scroll(svg, caption)}</figure>'


def _settings(methods: Sequence[tuple[str, Report]]) -> str:
    rows = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(settings_text(row["settings"]))}</td></tr>'
        for name, row in methods
    )
    return _scroll(f'<table class="words"><tbody>{rows}</tbody></table>', "Settings")


def _example(example: dict, is_single: bool) -> str:
    """Return one context with all replies. If there is only one checkpoint, its name is omitted."""
    turns = "".join(f"<p>{escape(one_line(turn, 400))}</p>" for turn in example["context"])
    rows = [("people", example["reference"], "eos")]
    rows += [
        (name if is_single else f"{checkpoint}: {name}", text, reason)
        for checkpoint, name, text, reason in example["replies"]
    ]
    cells = "".join(
        f'<tr><th scope="row">{escape(name)}</th><td>{escape(one_line(text, 400))}'
        + ("" if reason == "eos" else f' <span class="reason">{reason}</span>')
        + "</td></tr>"
        for name, text, reason in rows
    )
    return f'<div class="example" lang="zh">{turns}<table><tbody>{cells}</tbody></table></div>'
