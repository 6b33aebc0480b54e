"""The report as Markdown; the tables are also those of the HTML page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

SHARES = ("repetitive", "echo", "empty")
QUALITY = (
    ("reference_cost_nats_per_unit", "cost on references, nats/unit"),
    ("dist_1", "Dist-1"),
    ("dist_2", "Dist-2"),
    ("word_dist_1", "word Dist-1"),
    ("word_dist_2", "word Dist-2"),
    ("ent_4", "Ent-4"),
    ("bleu_2", "BLEU-2"),
    ("bleu_4", "BLEU-4"),
    ("wrd", "1 - WRD"),
    ("greedy_matching", "greedy matching"),
    ("embedding_average", "embedding average"),
    ("mean_characters", "characters"),
)
"""Columns of the table of replies: key in report.json, heading."""

Report = dict[str, Any]


@dataclass(frozen=True)
class Table:
    """Headings and rows of text; the first column holds names."""

    headings: list[str]
    rows: list[list[str]]


def methods_of(report: Report) -> list[tuple[str, Report]]:
    """Return name and metrics of every method of every checkpoint; with one checkpoint its name is left out."""
    is_single = len(report["checkpoints"]) == 1
    return [
        (name if is_single else f"{part['name']}: {name}", row)
        for part in report["checkpoints"]
        for name, row in part["decoding"].items()
    ]


def model_table(report: Report) -> Table:
    """Return nats/unit and perplexity of the checkpoints and baselines."""
    rows = []
    for part in report["checkpoints"]:
        quality = part["quality"]
        value = with_interval(quality["nats_per_unit"], quality["interval"], 4)
        rows.append([part["name"], value, f"{quality['perplexity_per_unit']:.2f}"])
    for name in ("witten_bell_trigram", "unigram"):
        if name in report.get("baselines", {}):
            value = report["baselines"][name]
            rows.append([name.replace("_", " "), f"{value:.4f}", f"{math.exp(value):.2f}"])
    return Table(["model", "nats/unit", "perplexity/unit"], rows)


def turn_table(report: Report) -> Table:
    """Return nats/unit of the checkpoints by turn."""
    turns = {entry["turn"]: entry["units"] for part in report["checkpoints"] for entry in part["quality"]["by_turn"]}
    rows = [["units", *map(str, turns.values())]]
    for part in report["checkpoints"]:
        entries = {entry["turn"]: entry for entry in part["quality"]["by_turn"]}
        cells = [with_interval(entries[turn]["nats_per_unit"], entries[turn]["interval"]) for turn in turns]
        rows.append([part["name"], *cells])
    return Table(["nats/unit of turn", *turns], rows)


def ending_table(report: Report) -> Table:
    """Return whether and how the replies of each method end, and how often they repeat."""
    limits = [f"r_{length}" for length in report["lengths"]]
    headings = ["decoding", *limits, "longest, tokens", "bound", "eos / floor / limit", "rep-4", *SHARES]
    rows = []
    for name, row in methods_of(report):
        cells = [cell(row, limit) for limit in limits]
        cells += [str(row["longest_tokens"]), str(row["bound_tokens"])]
        cells.append(" / ".join(str(count) for count in row["stop_reasons"].values()))
        rows.append([name, *cells, cell(row, "rep_4"), *(cell(row, share) for share in SHARES)])
    people = report["reference"]
    blank = [""] * (len(limits) + 3)
    rows.append(["people", *blank, cell(people, "rep_4"), *(cell(people, share) for share in SHARES)])
    return Table(headings, rows)


def reply_table(report: Report) -> Table:
    """Return likeness to the references and diversity of each method."""
    named = [*methods_of(report), ("people", report["reference"])]
    columns = [(key, heading) for key, heading in QUALITY if any(row.get(key) is not None for _, row in named)]
    rows = [[name, *(cell(row, key) for key, _ in columns)] for name, row in named]
    return Table(["decoding", *(heading for _, heading in columns)], rows)


def cell(row: Report, key: str) -> str:
    """Return a metric with its interval; empty if it was not measured."""
    if key == "reference_cost_nats_per_unit" and row.get(key) is None and row.get("forbidden_references"):
        return f"forbids {row['forbidden_references']:.1%}"
    if row.get(key) is None:
        return ""
    places = 4 if key.startswith("reference") else 1 if key in ("bleu_2", "bleu_4", "mean_characters") else 3
    return with_interval(row[key], row["intervals"].get(key), places)


def with_interval(value: float, interval: Sequence[float] | None, places: int = 3) -> str:
    """Return a value with half of its interval; for 0 the upper end of the interval instead."""
    if interval is None:
        return f"{value:.{places}f}"
    if value == 0:
        return f"0 (≤ {interval[1]:.{places}f})" if interval[1] else "0"
    return f"{value:.{places}f} ± {(interval[1] - interval[0]) / 2:.{places}f}"


def notes(report: Report) -> list[str]:
    """Return the explanations of the numbers, one list item per line."""
    budgets = report["budgets"]
    lines = [
        f"{report['dialogues']} dialogues, {report['units']} units (characters and ends of turn), full history;"
        f" {report['contexts']} contexts answered, context i with seed {report['seed']} + i.",
        "± is half of a 95 % interval: percentile bootstrap for means and BLEU, Wilson for shares, random subsets of"
        " the text for Dist and Ent.",
        "r_L: share of replies without an end after L tokens. bound: the longest reply that the method can give, on any"
        " model. rep-4: share of repeated 4-grams of characters. repetitive: two or more characters three times in a"
        " row, or more than half of the pairs repeated. echo: the reply shares 80 % of its characters with the message.",
        "cost on references: nats/unit that rules and floor add to the replies of people.",
    ]
    if budgets:
        counts = ", ".join(f"{name} {count}" for name, count in budgets.items())
        lines.append(f"Dist and Ent are taken over the same number of n-grams for every method: {counts}.")
    if report["left_out"]:
        lines.append(f"{report['left_out']} dialogues were left out: they do not fit into the positions of a model.")
    for name, row in methods_of(report):
        cut_off = row["stop_reasons"]["limit"]
        if cut_off:
            lines.append(f"{name}: {cut_off} of {row['replies']} replies did not end and were cut off.")
    if report["vectors"] is None:
        lines.append(
            "Likeness to the references was not measured: the first checkpoint has no token vectors. Make them with"
            " python -m chatbot.similarity."
        )
    else:
        lines.append(f"Likeness is measured with the token vectors of {report['vectors']}.")
    rows = [row for _, row in methods_of(report)]
    if not any("bleu_2" in row for row in rows):
        lines.append('BLEU was not measured: pip install -e ".[eval]".')
    if "word_dist_1" not in budgets:
        lines.append('Word metrics were not measured: pip install -e ".[eval]".')
    return lines


def to_markdown(report: Report, timing: dict[str, Any] | None = None) -> str:
    """Return the whole report as Markdown.

    Args:
        report: Content of report.json.
        timing: Content of timing.json, to add a table of tokens/s; the terminal shows it, report.md does not.
    """
    names = ", ".join(part["name"] for part in report["checkpoints"])
    lines = [f"# {names} on {report['data']}", ""]
    lines += [*_lines(model_table(report)), *_lines(turn_table(report))]
    lines += ["## Does every reply end?", "", *_lines(ending_table(report))]
    lines += ["## Likeness and diversity", "", *_lines(reply_table(report))]
    if timing is not None:
        rows = [
            [f"{name}: {method}", f"{cost['tokens_per_second']:.0f}"]
            for name, costs in timing.items()
            for method, cost in costs.items()
        ]
        lines += _lines(Table(["decoding", "tokens/s"], rows))
    lines += [*(f"- {line}" for line in notes(report)), "", "## Settings", ""]
    for name, row in methods_of(report):
        lines.append(f"- {name}: " + ", ".join(f"{key} {value}" for key, value in row["settings"].items()))
    lines += ["", "## Replies side by side", ""]
    is_single = len(report["checkpoints"]) == 1
    for example in report["examples"]:
        lines.append("- " + " / ".join(map(one_line, example["context"])))
        lines.append(f"  - *people*: {one_line(example['reference'])}")
        for checkpoint, name, text, reason in example["replies"]:
            label = name if is_single else f"{checkpoint}: {name}"
            lines.append(f"  - {label}: {one_line(text)}" + ("" if reason == "eos" else f" [{reason}]"))
    return "\n".join(lines) + "\n"


def _lines(table: Table) -> list[str]:
    """Return a table as lines of Markdown and an empty line."""
    escaped = [[text.replace("|", "\\|") for text in row] for row in (table.headings, *table.rows)]
    head, *rows = ["| " + " | ".join(row) + " |" for row in escaped]
    return [head, "|---|" + "--:|" * (len(table.headings) - 1), *rows, ""]


def one_line(text: str, max_characters: int = 160) -> str:
    """Return a text on one line, cut to a maximum length."""
    text = " ".join(text.split())
    return text if len(text) <= max_characters else text[:max_characters] + "…"
