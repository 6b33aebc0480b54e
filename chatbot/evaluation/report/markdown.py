"""The report as Markdown."""

from __future__ import annotations

from chatbot.evaluation.report.tables import (
    Cell,
    Report,
    Table,
    ending_table,
    methods_of,
    model_table,
    reply_table,
    settings_text,
    turn_table,
)

BEST = "Bold: the best of a column, and those that are not clearly worse (their intervals overlap with its interval)."
IN_WORDS = (
    "A decoding method is the way in which the words of a reply are chosen; a row of the tables is one method of one model.",
    "nats/unit says how badly a model predicts what people really said, per character: 0.1 less is much.",
    "r_L says how many replies have no end after L tokens; a bot that never stops has a high one.",
    "Dist and Ent say how varied the replies are. The goal is the variety of people, not the highest number.",
    "BLEU, 1 - WRD and the like compare with the one reply that a person gave. Many other replies would be good, too, so"
    " only their order says something.",
    "None of these numbers says whether a reply makes sense; xianliao-evaluate --aptness measures that.",
)
"""What the numbers mean, for a first reader."""


def notes(report: Report) -> list[str]:
    """Return the explanations of the numbers, one list item per line."""
    budgets = report["budgets"]
    lines = [
        f"{report['dialogues']} dialogues, {report['units']} units (characters and ends of turn), full history;"
        f" {report['contexts']} contexts answered, context i with seed {report['seed']} + i.",
        "± is half of a 95 % interval: percentile bootstrap for means, sacrebleu's for BLEU, Wilson for shares, random"
        " subsets of the text for Dist and Ent.",
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


def to_markdown(report: Report) -> str:
    """Return the whole report as Markdown; `report` is the content of report.json."""
    names = ", ".join(part["name"] for part in report["checkpoints"])
    lines = [f"# {names} on {report['data']}", ""]
    lines += [*(f"- {line}" for line in report["verdict"]), ""]
    lines += [f"> **{line}**\n" for line in report["warnings"]]
    lines += [*(f"- {line}" for line in (*IN_WORDS, BEST)), ""]
    lines += [*_lines(model_table(report)), *_lines(turn_table(report))]
    lines += ["## Does every reply end?", "", *_lines(ending_table(report))]
    lines += ["## Likeness and diversity", "", *_lines(reply_table(report))]
    lines += [*(f"- {line}" for line in notes(report)), "", "## Settings", ""]
    for name, row in methods_of(report):
        lines.append(f"- {name}: {settings_text(row['settings'])}")
    lines += ["", "## Replies side by side", ""]
    is_single = len(report["checkpoints"]) == 1
    for example in report["examples"]:
        lines.append("- " + " / ".join(map(_plain, example["context"])))
        lines.append(f"  - *people*: {_plain(example['reference'])}")
        for checkpoint, name, text, reason in example["replies"]:
            label = name if is_single else f"{checkpoint}: {name}"
            lines.append(f"  - {label}: {_plain(text)}" + ("" if reason == "eos" else f" [{reason}]"))
    return "\n".join(lines).replace("<", "&lt;") + "\n"  # names and texts are no HTML


def _plain(text: str) -> str:
    """Return a text on one line, in which no bracket begins a link or an image."""
    return one_line(text).replace("[", "\\[")


def _lines(table: Table) -> list[str]:
    """Return a table as lines of Markdown and an empty line."""
    rows = [*table.rows, *([] if table.last is None else [table.last])]
    texts = [[column.heading for column in table.columns], *([_text(cell) for cell in row] for row in rows)]
    escaped = [[text.replace("|", "\\|") for text in row] for row in texts]
    head, *body = ["| " + " | ".join(row) + " |" for row in escaped]
    return [head, "|---|" + "--:|" * (len(table.columns) - 1), *body, ""]


def _text(cell: Cell) -> str:
    text = f"{cell.text} {cell.spread}".strip()
    return f"**{text}**" if cell.is_best else text


def one_line(text: str, max_characters: int = 160) -> str:
    """Return a text on one line, cut to a maximum length."""
    text = " ".join(text.split())
    return text if len(text) <= max_characters else text[:max_characters] + "…"
