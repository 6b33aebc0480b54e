"""Statistics page of a prepared set: report/report.md with its plots.

The content of the page depends on the data alone, so that the same build gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from chatbot.text.dialogue import valid_text
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.cleaning.cleaner import ONE_TURN, RULES
from data_prep.cleaning.ledger import NOTICES, Ledger
from data_prep.corpus.frequent_turns import FREQUENCY_RULES
from data_prep.reading.formats import NEGATIVE
from data_prep.reading.json_shapes import NOT_A_DIALOGUE, OBJECT_WITHOUT_TURNS, TEXT_WITHOUT_A_REPLY
from data_prep.reading.messages import BOT_IS_SILENT
from data_prep.reading.records import (
    BOT_OPENS,
    LEFT_OUT,
    LONG_LINE,
    MANY_CELLS,
    MANY_VALUES,
    MAX_TURNS,
    MAX_VALUES,
    NOT_SPEECH,
)

_REASONS = {
    "not_json": "not JSON",
    "not_text": "neither UTF-8 nor GB18030",
    NOT_A_DIALOGUE: "not a dialogue: neither a list of strings nor an object that holds one",
    OBJECT_WITHOUT_TURNS: "a JSON object without turns, see the shapes in data_prep/README.md",
    TEXT_WITHOUT_A_REPLY: "a JSON object with a text and no reply",
    NEGATIVE: "a row whose last column replies to something else (label 0)",
    NOT_SPEECH: "a system notice, a picture, a file, or only a quotation",
    BOT_OPENS: "the imitated speaker begins a dialogue with it, so it answers nothing",
    BOT_IS_SILENT: "the imitated speaker answers nothing",
    LONG_LINE: "a line, row or message of more than 16 MB",
    MANY_CELLS: f"a row of more than {MAX_TURNS:,} cells",
    MANY_VALUES: f"a JSON line of more than {MAX_VALUES:,} values",
    "disliked": "feedback from the page: the reply was disliked",
    "nothing_left": "turns that are empty after cleaning",
    "too_long": "turns longer than the limit",
    ONE_TURN: "a single turn, alone or between removed turns, which has no answer",
    "duplicate": "equal to another dialogue, which is kept",
    "near_duplicate": "almost equal to another dialogue, which is kept",
    "also_in_test": "in the test split too",
    "also_in_valid": "in the valid split too",
    **{rule.name: rule.summary for rule in (*RULES.values(), *FREQUENCY_RULES)},
}
"""Explanation of each reason for which a dialogue or turn is dropped or changed."""

ShardStatistics = Mapping[str, Any]
"""Statistics of one shard, from `write_shard`."""


def write_report(
    folder: Path,
    manifest: Mapping[str, Any],
    ledger: Ledger,
    tokenizer: DialogueTokenizer,
    shards: Mapping[str, Sequence[ShardStatistics]],
) -> None:
    """Write report.md and its plots.

    Args:
        folder: Folder to create.
        manifest: Manifest of the set.
        ledger: Counts over all files.
        tokenizer: Tokenizer of the set.
        shards: Statistics of the shards of each split.
    """
    folder.mkdir()
    train = shards["train"]
    turns = _total(train, "turns_per_dialogue")
    characters = _total(train, "characters_per_turn")
    tokens = _total(train, "tokens_per_dialogue")
    plots = {
        "turns.png": ("turns per dialogue", np.arange(len(turns)), turns),
        "characters.png": ("characters per turn", np.arange(len(characters)), characters),
        "tokens.png": ("tokens per dialogue", 2.0 ** (np.arange(len(tokens)) / 2), tokens),
    }
    for name, (label, values, counts) in plots.items():
        _plot(folder / name, label, values, counts, is_log=name == "tokens.png")
    lines = [
        "# Statistics of a prepared set",
        "",
        *_dialogues(manifest, ledger),
        *_warnings(manifest),
        *_reasons(manifest, ledger),
        *_samples(ledger),
        *_splits(manifest),
        *_tokens(train, tokenizer),
        *_lengths(turns, characters, plots),
        *_top_replies(train),
    ]
    (folder / "report.md").write_text(valid_text("\n".join(lines) + "\n"), encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Return the lines of a Markdown table; columns of numbers are aligned to the right, with commas for thousands."""
    cells = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    is_numeric = [bool(cells) and all(row[column][:1].isdigit() for row in cells) for column in range(len(head))]
    rule = ["--:" if numeric else "---" for numeric in is_numeric]
    return [f"| {' | '.join(line)} |" for line in (head, rule, *cells)] + [""]


def quoted(text: str) -> str:
    """Return a text as code for a cell of a Markdown table; characters that would end code or cell are replaced."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return "`" + shown.replace("`", "'").replace("|", "¦") + "`"


def token_statistics(shards: Sequence[ShardStatistics], tokenizer: DialogueTokenizer) -> dict[str, float]:
    """Return the characters per token, the share of tokens that are one character, and the share that are one byte."""
    counts = np.sum([shard["token_counts"] for shard in shards], axis=0)
    names = tokenizer.tokens(range(tokenizer.vocab_size))
    is_byte = np.array([len(name) == 6 and name.startswith("<0x") for name in names])
    is_single = np.array([len(name) == 1 for name in names])
    total = max(counts.sum(), 1)
    characters = sum(shard["characters"] for shard in shards)
    return {
        "characters_per_token": characters / total,
        "single_characters": counts[is_single].sum() / total,
        "bytes": counts[is_byte].sum() / total,
    }


def _dialogues(manifest: Mapping[str, Any], ledger: Ledger) -> list[str]:
    turns = manifest["turns"]
    columns = ("read", "kept_whole", "split", "dropped")
    rows = [
        [quoted(source["file"]), source["for"], *(source.get(name, 0) for name in columns)]
        for source in manifest["sources"]
    ]
    if len(rows) > 1:
        rows.append(["all", "", *(manifest["dialogues"][name] for name in columns)])
    return [
        "## What happened to the dialogues",
        "",
        "Each dialogue is kept whole, split where turns were removed, or dropped. `dropped.jsonl.gz` lists every removed"
        " turn and every message left out at reading.",
        "",
        *table(["file", "for", "read", "kept whole", "split", "dropped"], rows),
        f"The result is {ledger.pieces:,} dialogues. Of {turns.get('read', 0):,} turns read, {turns['in_set']:,} are in the"
        f" set and {turns.get('removed', 0):,} are removed.",
        "",
    ]


def _warnings(manifest: Mapping[str, Any]) -> list[str]:
    shown = [quoted(warning)[1:-1] for warning in manifest["warnings"]]
    return ["## Warnings", "", *(f"- {warning}" for warning in shown), ""] if shown else []


def _reasons(manifest: Mapping[str, Any], ledger: Ledger) -> list[str]:
    lines = []
    for title, name in (
        ("Dialogues dropped", "dropped"),
        ("Messages left out at reading", "left_out"),
        ("Turns removed in cleaning", "dirty_turns"),
        ("Turns changed in cleaning", "changed_turns"),
    ):
        rows = [[reason, count, _REASONS.get(reason, "")] for reason, count in manifest.get(name, {}).items()]
        lines += [f"## {title}", "", *(table(["reason", "count", "explanation"], rows) if rows else ["None.", ""])]
        if name == "left_out" and rows:
            lines += _notices(ledger)
    return lines


def _notices(ledger: Ledger) -> list[str]:
    """Return the lines with the first messages that were left out, so that a person can see whether any is speech."""
    shown = [quoted(text) for reason in LEFT_OUT for (text,) in ledger.samples.get(reason, [])]
    is_cut = any(len(ledger.samples.get(reason, [])) == NOTICES for reason in LEFT_OUT)
    first = f"The first {NOTICES} different ones of each reason" if is_cut else "Each of them, once"
    head = f"{first}; `dropped.jsonl.gz` has all of them with their line numbers."
    return [head, "", *(f"- {text}" for text in shown), ""]


def _samples(ledger: Ledger) -> list[str]:
    rows = []
    for rule in sorted(ledger.samples.keys() - set(LEFT_OUT)):
        for before, *after in ledger.samples[rule]:
            rows.append([rule, quoted(before), quoted(after[0]) if after and after[0] else "–"])
    return ["## Examples of each rule", "", *table(["rule", "before", "after"], rows)] if rows else []


def _splits(manifest: Mapping[str, Any]) -> list[str]:
    columns = ("dialogues", "turns", "tokens", "units")
    rows = [[name, *(split[column] for column in columns)] for name, split in manifest["splits"].items()]
    text = "A unit is a character or the end of a turn; the number of tokens includes the ends of turns too."
    return ["## Splits", "", text, "", *table(["split", *columns], rows)]


def _tokens(train: Sequence[ShardStatistics], tokenizer: DialogueTokenizer) -> list[str]:
    statistics = token_statistics(train, tokenizer)
    rows: list[list[object]] = [
        ["vocabulary", tokenizer.vocab_size],
        ["characters per token", f"{statistics['characters_per_token']:.3f}"],
        ["tokens that are one character", f"{statistics['single_characters']:.1%}"],
        ["tokens that are a byte of a character", f"{statistics['bytes']:.2%}"],
    ]
    return ["## Tokens of the train split", "", *table(["quantity", "value"], rows)]


def _lengths(turns: np.ndarray, characters: np.ndarray, plots: Mapping[str, tuple]) -> list[str]:
    rows = [
        [name, *(int(np.searchsorted(np.cumsum(counts), share * counts.sum())) for share in (0.5, 0.9, 0.99, 1.0))]
        for name, counts in (("turns per dialogue", turns), ("characters per turn", characters))
        if counts.sum()
    ]
    return [
        "## Lengths in the train split",
        "",
        *table(["quantity", "median", "90 %", "99 %", "longest"], rows),
        *(f"![{label}]({name})" for name, (label, _, _) in plots.items()),
        "",
    ]


def _top_replies(train: Sequence[ShardStatistics]) -> list[str]:
    top: Counter[str] = Counter()
    for shard in train:
        top.update(shard["top"])
    ranked = sorted(top.items(), key=lambda entry: (-entry[1], entry[0]))
    turns = max(sum(shard["turns"] for shard in train), 1)
    rows = [[quoted(text), count, f"{count / turns:.3%}"] for text, count in ranked]
    return ["## Most frequent turns", "", *table(["turn", "count", "share"], rows[:20])] if rows else []


def _total(shards: Sequence[ShardStatistics], name: str) -> np.ndarray:
    """Return the sum of the histograms of this name, which can have different lengths; int64."""
    total = np.zeros(max((len(shard[name]) for shard in shards), default=1) or 1, np.int64)
    for shard in shards:
        total[: len(shard[name])] += np.array(shard[name], np.int64)
    return total


def _plot(path: Path, label: str, values: np.ndarray, counts: np.ndarray, is_log: bool) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.5), layout="constrained")
    axes = figure.add_subplot()
    last = int(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum())) + 1
    axes.step(values[:last], counts[:last] / max(counts.sum(), 1), where="mid")
    if is_log:
        axes.set_xscale("log", base=2)
    axes.set(xlabel=label, ylabel="share", ylim=(0, None))
    figure.savefig(path, dpi=100, metadata={"Software": None})
