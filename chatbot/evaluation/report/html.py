"""The report as one page that needs nothing else: tables, plots, replies side by side."""

from __future__ import annotations

from html import escape

from chatbot.evaluation.report import plots
from chatbot.evaluation.report.markdown import Table, by_turn, endings, methods_of, models, notes, one_line, quality

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


def to_html(report: dict) -> str:
    names = ", ".join(part["name"] for part in report["checkpoints"])
    title = escape(f"{names} on {report['data']}")
    methods = methods_of(report)
    figures = [
        ("No end after L tokens", plots.termination_curves(methods, max(report["lengths"]))),
        ("Lengths of the replies", plots.length_histograms(methods, report["reference"])),
        ("Quality and diversity", plots.quality_and_diversity(methods, report["reference"])),
    ]
    parts = [
        f"<h1>{title}</h1>",
        _table(models(report)),
        _table(by_turn(report)),
        "<h2>Does every reply end?</h2>",
        _table(endings(report)),
        _figure(*figures[0]),
        "<h2>Near and varied?</h2>",
        _table(quality(report)),
        *(_figure(*figure) for figure in figures[1:]),
        "<h2>How to read it</h2>",
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


def _settings(settings: dict) -> str:
    return ", ".join(f"{key} {value}" for key, value in settings.items())


def _table(table: Table, kind: str = "numbers") -> str:
    head = "".join(f"<th>{escape(text)}</th>" for text in table.headings)
    rows = ("".join(f"<td>{escape(text)}</td>" for text in row) for row in table.rows)
    body = "".join(f"<tr>{row}</tr>" for row in rows)
    return (
        f'<div class="scroll"><table class="{kind}"><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'
    )


def _figure(caption: str, svg: str | None) -> str:
    return "" if svg is None else f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def _example(example: dict, one: bool) -> str:
    turns = "".join(f'<p class="person">{escape(one_line(turn, 400))}</p>' for turn in example["context"])
    rows = [("people", example["reference"], "eos")]
    rows += [
        (name if one else f"{checkpoint}: {name}", text, reason)
        for checkpoint, name, text, reason in example["replies"]
    ]
    cells = "".join(
        f"<tr><td>{escape(name)}</td><td>{escape(one_line(text, 400))}"
        + ("" if reason == "eos" else f' <span class="reason">{reason}</span>')
        + "</td></tr>"
        for name, text, reason in rows
    )
    return f'<div class="example">{turns}<table>{cells}</table></div>'
