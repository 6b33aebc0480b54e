"""The report as one self-contained HTML page: tables, plots, replies side by side."""

from __future__ import annotations

from html import escape

from chatbot.evaluation.report import plots
from chatbot.evaluation.report.markdown import (
    Report,
    Table,
    ending_table,
    methods_of,
    model_table,
    notes,
    one_line,
    reply_table,
    turn_table,
)

STYLE = """
:root { color-scheme: light; }
body { font: 15px/1.5 system-ui, "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif; color: #222;
       max-width: 1200px; margin: 2em auto; padding: 0 1em; }
h1 { font-size: 1.5em; } h2 { font-size: 1.15em; margin-top: 2em; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 3px 9px; text-align: right; border-bottom: 1px solid #ddd; white-space: nowrap; }
th { vertical-align: bottom; white-space: normal; } th:first-child, td:first-child { text-align: left; }
tr:hover td { background: #f4f6fa; }
figure { margin: 1em 0; } figure svg { max-width: 100%; height: auto; } figcaption { color: #555; }
.example { border: 1px solid #ddd; border-radius: 8px; padding: .6em 1em; margin: 1em 0; }
.example p { margin: .15em 0; } .person { color: #555; } .reason { color: #b3261e; font-size: 12px; }
table.words td { text-align: left; white-space: normal; }
.example td { white-space: normal; text-align: left; vertical-align: top; }
.example td:first-child { white-space: nowrap; color: #555; }
"""


def to_html(report: Report) -> str:
    """Return the whole report as an HTML page without external files."""
    names = ", ".join(part["name"] for part in report["checkpoints"])
    title = escape(f"{names} on {report['data']}")
    methods = methods_of(report)
    figures = [
        ("Share of replies without an end after L tokens", plots.termination_curves(methods, max(report["lengths"]))),
        ("Lengths of the replies", plots.length_histograms(methods, report["reference"])),
        ("Quality and diversity", plots.quality_and_diversity(methods, report["reference"])),
    ]
    parts = [
        f"<h1>{title}</h1>",
        _table(model_table(report)),
        _table(turn_table(report)),
        "<h2>Does every reply end?</h2>",
        _table(ending_table(report)),
        _figure(*figures[0]),
        "<h2>Likeness and diversity</h2>",
        _table(reply_table(report)),
        *(_figure(*figure) for figure in figures[1:]),
        "<h2>How to read the numbers</h2>",
        "<ul>" + "".join(f"<li>{escape(line)}</li>" for line in notes(report)) + "</ul>",
        "<h2>Settings</h2>",
        _table(Table(["decoding", "settings"], [[name, _settings(row["settings"])] for name, row in methods]), "words"),
        "<h2>Replies side by side</h2>",
        *(_example(example, len(report["checkpoints"]) == 1) for example in report["examples"]),
    ]
    head = f'<meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>'
    body = "\n".join(parts)
    return (
        f'<!doctype html>\n<html lang="zh"><head>{head}<style>{STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def _settings(settings: dict[str, object]) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _table(table: Table, css_class: str = "numbers") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.headings)
    rows = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    table_html = f'<table class="{css_class}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>'
    return f'<div class="scroll">{table_html}</div>'


def _figure(caption: str, svg: str | None) -> str:
    return "" if svg is None else f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _example(example: dict, is_single: bool) -> str:
    """Return one context with all replies; with one checkpoint its name is left out."""
    turns = "".join(f'<p class="person">{escape(one_line(turn, 400))}</p>' for turn in example["context"])
    rows = [("people", example["reference"], "eos")]
    rows += [
        (name if is_single else f"{checkpoint}: {name}", text, reason)
        for checkpoint, name, text, reason in example["replies"]
    ]
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(one_line(text, 400))}"
        + ("" if reason == "eos" else f' <span class="reason">{reason}</span>')
        + "</td></tr>"
        for name, text, reason in rows
    )
    return f'<div class="example">{turns}<table>{cells}</table></div>'
