"""The statistics page of a prepared set: report/report.md with its plots.

Everything in it depends on the data alone, so that the same build gives the same bytes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.cleaning.cleaner import ONE_TURN, RULES
from data_prep.cleaning.ledger import Ledger
from data_prep.corpus.frequent_turns import FREQUENCY_RULES

_WHY = {
    "not_json": "not JSON",
    "not_text": "neither UTF-8 nor GB18030",
    "not_a_list_of_strings": "no dialogue: neither a list of strings nor an object that holds one",
    "line_too_long": "a line of more than 16 MB",
    "disliked": "feedback from the page: the reply was disliked",
    "nothing_left": "turns of which nothing is left",
    "too_long": "turns longer than the limit",
    ONE_TURN: "fewer than two turns",
    "duplicate": "equal to another dialogue, which stays",
    "near_duplicate": "near another dialogue, which stays",
    "also_in_test": "in the test split too",
    "also_in_valid": "in the valid split too",
    **{rule.name: rule.says for rule in (*RULES.values(), *FREQUENCY_RULES)},
}


def write_report(
    folder: Path, manifest: dict, ledger: Ledger, tokenizer: DialogueTokenizer, shards: dict[str, Sequence[dict]]
) -> None:
    """Writes report.md and its plots.

    Args:
        folder: Is made.
        manifest: Of the set.
        ledger: What happened, over all files.
        tokenizer: Of the set.
        shards: By split, what `shards.write_shard` says of each shard.
    """
    folder.mkdir()
    train = shards["train"]
    turns = _total(train, "turns_a_dialogue")
    characters = _total(train, "characters_a_turn")
    tokens = _total(train, "tokens_a_dialogue")
    plots = {
        "turns.png": ("turns a dialogue", np.arange(len(turns)), turns),
        "characters.png": ("characters a turn", np.arange(len(characters)), characters),
        "tokens.png": ("tokens a dialogue", 2.0 ** (np.arange(len(tokens)) / 2), tokens),
    }
    for name, (label, places, counts) in plots.items():
        _plot(folder / name, label, places, counts, is_log=name == "tokens.png")
    lines = [
        "# Statistics of a prepared set",
        "",
        *_dialogues(manifest, ledger),
        *_reasons(manifest),
        *_samples(ledger),
        *_splits(manifest),
        *_tokens(train, tokenizer),
        *_lengths(turns, characters, plots),
        *_top_replies(train),
    ]
    (folder / "report.md").write_text("\n".join(lines) + "\n", encoding="utf-8")


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> list[str]:
    """Lines of a Markdown table; numbers are grouped and set to the right."""
    rows = [[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]
    numeric = [bool(rows) and all(row[at][:1].isdigit() for row in rows) for at in range(len(head))]
    rule = ["--:" if is_number else "---" for is_number in numeric]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *rows)] + [""]


def quoted(text: str) -> str:
    """A text as code in a Markdown table, whatever is in it."""
    shown = "".join(char if char.isprintable() else f"\\u{ord(char):04x}" for char in text)
    return "`" + shown.replace("`", "'").replace("|", "¦") + "`"


def token_statistics(shards: Sequence[dict], tokenizer: DialogueTokenizer) -> dict[str, float]:
    """Characters a token, and the shares of tokens that are one character and that are a byte of one."""
    counts = np.sum([shard["token_counts"] for shard in shards], axis=0)
    names = tokenizer.tokens(range(tokenizer.vocab_size))
    is_byte = np.array([len(name) == 6 and name.startswith("<0x") for name in names])
    is_single = np.array([len(name) == 1 for name in names])
    total = max(counts.sum(), 1)
    characters = sum(shard["characters"] for shard in shards)
    return {
        "characters_a_token": characters / total,
        "single_characters": counts[is_single].sum() / total,
        "bytes": counts[is_byte].sum() / total,
    }


def _dialogues(manifest: dict, ledger: Ledger) -> list[str]:
    columns = ("read", "kept_whole", "split", "dropped")
    rows = [
        [source["file"], source["for"], *(source.get(name, 0) for name in columns)] for source in manifest["sources"]
    ]
    if len(rows) > 1:
        rows.append(["all", "", *(manifest["dialogues"][name] for name in columns)])
    return [
        "## What happened to the dialogues",
        "",
        "Each is kept whole, split where turns went, or dropped. Every turn that went is in `dropped.jsonl.gz`.",
        "",
        *table(["file", "for", "read", "kept whole", "split", "dropped"], rows),
        f"{ledger.pieces:,} dialogues came of them.",
        "",
    ]


def _reasons(manifest: dict) -> list[str]:
    lines = []
    for title, name in (
        ("Dialogues dropped", "dropped"),
        ("Turns taken out in cleaning", "dirty_turns"),
        ("Turns changed in cleaning", "changed_turns"),
    ):
        rows = [[reason, count, _WHY[reason]] for reason, count in manifest[name].items()]
        lines += [f"## {title}", "", *(table(["reason", "count", "what it is"], rows) if rows else ["None.", ""])]
    return lines


def _samples(ledger: Ledger) -> list[str]:
    rows = []
    for rule in sorted(ledger.samples):
        for before, *after in ledger.samples[rule]:
            rows.append([rule, quoted(before), quoted(after[0]) if after and after[0] else "–"])
    return ["## Examples of each rule", "", *table(["rule", "before", "after"], rows)] if rows else []


def _splits(manifest: dict) -> list[str]:
    columns = ("dialogues", "turns", "tokens", "units")
    rows = [[name, *(split[column] for column in columns)] for name, split in manifest["splits"].items()]
    text = "A unit is a character or the end of a turn; tokens count the end of a turn too."
    return ["## Splits", "", text, "", *table(["split", *columns], rows)]


def _tokens(train: Sequence[dict], tokenizer: DialogueTokenizer) -> list[str]:
    found = token_statistics(train, tokenizer)
    rows = [
        ["vocabulary", tokenizer.vocab_size],
        ["characters a token", f"{found['characters_a_token']:.3f}"],
        ["tokens that are one character", f"{found['single_characters']:.1%}"],
        ["tokens that are a byte of a character", f"{found['bytes']:.2%}"],
    ]
    return ["## Tokens of the train split", "", *table(["what", "how much"], rows)]


def _lengths(turns: np.ndarray, characters: np.ndarray, plots: dict) -> list[str]:
    rows = [
        [name, *(int(np.searchsorted(np.cumsum(counts), share * counts.sum())) for share in (0.5, 0.9, 0.99, 1.0))]
        for name, counts in (("turns a dialogue", turns), ("characters a turn", characters))
        if counts.sum()
    ]
    return [
        "## Lengths in the train split",
        "",
        *table(["what", "median", "90 %", "99 %", "longest"], rows),
        *(f"![{label}]({name})" for name, (label, _, _) in plots.items()),
        "",
    ]


def _top_replies(train: Sequence[dict]) -> list[str]:
    top: Counter[str] = Counter()
    for shard in train:
        top.update(shard["top"])
    ranked = sorted(top.items(), key=lambda entry: (-entry[1], entry[0]))
    turns = max(sum(shard["turns"] for shard in train), 1)
    rows = [[quoted(text), count, f"{count / turns:.3%}"] for text, count in ranked]
    return ["## Most frequent turns", "", *table(["turn", "count", "share"], rows[:20])] if rows else []


def _total(shards: Sequence[dict], name: str) -> np.ndarray:
    """Sum of histograms of different lengths."""
    total = np.zeros(max((len(shard[name]) for shard in shards), default=1) or 1, np.int64)
    for shard in shards:
        total[: len(shard[name])] += np.array(shard[name], np.int64)
    return total


def _plot(path: Path, label: str, places: np.ndarray, counts: np.ndarray, is_log: bool) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(6, 2.5), layout="constrained")
    axes = figure.add_subplot()
    last = int(np.searchsorted(np.cumsum(counts), 0.999 * counts.sum())) + 1
    axes.step(places[:last], counts[:last] / max(counts.sum(), 1), where="mid")
    if is_log:
        axes.set_xscale("log", base=2)
    axes.set(xlabel=label, ylabel="share", ylim=(0, None))
    figure.savefig(path, dpi=100, metadata={"Software": None})
