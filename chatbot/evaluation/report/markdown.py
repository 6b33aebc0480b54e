"""The report as Markdown, in English or in Chinese."""

from __future__ import annotations

from collections.abc import Callable

from chatbot.evaluation.grid import ENOUGH_CONTEXTS
from chatbot.evaluation.report.tables import (
    PEOPLE,
    Cell,
    Report,
    Table,
    ending_table,
    is_word,
    label,
    meanings,
    methods_of,
    model_table,
    reply_table,
    settings_text,
    speakers_of,
    turn_table,
)
from chatbot.evaluation.report.words import chinese, chinese_settings

Say = Callable[[str], str]
"""Function that returns a text in the language of the report."""
BEST = (
    "Bold: the best of a column, and those that are not clearly worse (their intervals overlap with its interval); with"
    f" fewer than {ENOUGH_CONTEXTS} replies or dialogues, none."
)
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
        f"Dialogues: {report['dialogues']}; units (characters and ends of turn): {report['units']}; full history."
        f" Contexts answered: {report['contexts']}; context i has the seed {report['seed']} + i.",
        "± is half of a 95 % interval: percentile bootstrap for means, sacrebleu's for BLEU, Wilson for shares, random"
        " subsets of the text for Dist and Ent.",
    ]
    if budgets:
        counts = ", ".join(f"{name} {count}" for name, count in budgets.items())
        lines.append(f"Dist and Ent are taken over the same number of n-grams for every method: {counts}.")
    if report["left_out"]:
        lines.append(
            f"Dialogues left out, because they do not fit into the positions of a model: {report['left_out']}."
        )
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


def to_markdown(report: Report, in_chinese: bool = False) -> str:
    """Return the whole report as Markdown, in one language; `report` is the content of report.json."""
    say: Say = chinese if in_chinese else str
    colon = "：" if in_chinese else ": "
    lines = [f"# {say(title_of(report))}", ""]
    lines += [*(f"- {say(line)}" for line in report["verdict"]), ""]
    lines += [f"> **{say(line)}**\n" for line in report["warnings"]]
    lines += [f"## {say('Replies side by side')}", "", *_examples(report, say, colon)]
    lines += ["", f"## {say('Decoding methods')}", ""]
    lines += [f"- {name}{colon}{say(about)}" if about else f"- {name}" for name, about in report["methods"].items()]
    lines += ["", f"## {say('How to read the numbers')}", "", *(f"- {say(line)}" for line in (*IN_WORDS, BEST))]
    lines += ["", f"## {say('Does every reply end?')}", "", *_table(ending_table(report), say, colon)]
    lines += [f"## {say('Likeness and diversity')}", "", *_table(reply_table(report), say, colon)]
    lines += [f"## {say('How well does it predict what people say?')}", ""]
    lines += [*_table(model_table(report), say, colon), *_table(turn_table(report), say, colon)]
    lines += [f"## {say('How the numbers were measured')}", "", *(f"- {say(line)}" for line in notes(report)), ""]
    lines += [f"## {say('Settings')}", ""]
    for name, row in methods_of(report):
        settings = settings_text(row["settings"])
        lines.append(f"- {name}{colon}{chinese_settings(settings) if in_chinese else settings}")
    return "\n".join(lines).replace("<", "&lt;") + "\n"  # names and texts are no HTML


def title_of(report: Report) -> str:
    """Return the title of a report."""
    return f"Evaluation of {', '.join(part['name'] for part in report['checkpoints'])} on {report['data']}"


def _examples(report: Report, say: Say, colon: str) -> list[str]:
    """Return the contexts with the replies of people and of all methods, as lines of nested lists."""
    lines = []
    is_single = len(report["checkpoints"]) == 1
    for example in report["examples"]:
        speakers = speakers_of(example["context"])
        turns = zip(speakers, map(_plain, example["context"]), strict=True)
        lines.append("- " + " / ".join(f"{say(speaker)}{colon}{turn}" for speaker, turn in turns))
        lines.append(f"  - *{say(PEOPLE)}*{colon}{_plain(example['reference'])}")
        for checkpoint, name, text, reason in example["replies"]:
            ending = "" if reason == "eos" else f" [{say(str(reason))}]"
            lines.append(f"  - {label(checkpoint, name, is_single)}{colon}{_plain(text)}{ending}")
    return lines


def _plain(text: str) -> str:
    """Return a text on one line, in which no bracket begins a link or an image."""
    return one_line(text).replace("[", "\\[")


def _table(table: Table, say: Say, colon: str) -> list[str]:
    """Return a table as lines of Markdown, with a list of what its columns mean."""
    rows = [*table.rows, *([] if table.last is None else [table.last])]
    texts = [[say(column.heading) for column in table.columns], *([_text(cell, say) for cell in row] for row in rows)]
    escaped = [[text.replace("|", "\\|") for text in row] for row in texts]
    head, *body = ["| " + " | ".join(row) + " |" for row in escaped]
    legend = [f"- {', '.join(map(say, headings))}{colon}{say(meaning)}" for headings, meaning in meanings(table)]
    notes = [f"- {say(table.note)}"] if table.note else []
    return [head, "|---|" + "--:|" * (len(table.columns) - 1), *body, "", *notes, *legend, *([""] if legend else [])]


def _text(cell: Cell, say: Say) -> str:
    text = f"{say(cell.text) if is_word(cell) else cell.text} {cell.spread}".strip()
    return f"**{text}**" if cell.is_best else text


def one_line(text: str, max_characters: int = 160) -> str:
    """Return a text on one line, cut to a maximum length."""
    text = " ".join(text.split())
    return text if len(text) <= max_characters else text[:max_characters] + "…"
