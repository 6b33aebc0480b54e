"""One evaluation: quality, baselines and the grid of decoding methods, as report.json and report.md.

Nothing in the report was produced by a clock; times are in timing.json beside it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from chatbot.bot import Chatbot
from chatbot.checkpoint import write_json
from chatbot.dialogue import clean_turn, count_units, join_spaces
from chatbot.dialogue_files import FileError, is_prepared_set, read_dialogues
from chatbot.evaluation.decoding import answer, make_contexts, measure, methods
from chatbot.evaluation.ngram import WittenBell
from chatbot.quality import measure_quality

REPORT, MARKDOWN, TIMING = "report.json", "report.md", "timing.json"


def evaluate(
    bot: Chatbot,
    data: str | Path,
    output: str | Path,
    baseline: str | Path | None = None,
    limit: int = 128,
    max_contexts: int = 200,
    max_dialogues: int | None = None,
    seed: int = 0,
) -> dict:
    """Measures a checkpoint on dialogues and writes the report.

    Args:
        bot: The checkpoint.
        data: Dialogue JSONL, a folder of such files, or a prepared set (its valid split).
        output: Folder for report.json, report.md and timing.json.
        baseline: Where the n-gram baselines learn from (a prepared set's train split, or JSONL); None leaves them out.
        limit: L of r_L, and where plain decoding is cut off.
        max_contexts: Most contexts that are answered.
        max_dialogues: Most dialogues that are scored; None scores all.
        seed: Context i is answered with seed + i.

    Raises:
        FileError: Data cannot be read or holds no dialogue.
    """
    output = Path(output)
    dialogues = _scorable(list(islice(read_dialogues(data), max_dialogues)), data)
    output.mkdir(parents=True, exist_ok=True)
    report: dict = {
        "checkpoint": bot.name,
        "data": Path(data).name + (" (valid split)" if is_prepared_set(Path(data)) else ""),
        "seed": seed,
        "settings": {"temperature": bot.settings.temperature, "top_p": bot.settings.top_p, "top_k": bot.settings.top_k},
        "floor": {
            "start_tokens": bot.settings.floor_start_tokens,
            "delta_tokens": bot.settings.floor_delta_tokens,
            "limit_tokens": bot.settings.limit_tokens,
        },
        "quality": _quality(bot, dialogues),
    }
    if baseline is not None:
        report["baselines"] = _baselines(baseline, dialogues)
    contexts = make_contexts(dialogues, max_contexts)
    report["limit"] = limit
    report["decoding"], timing = {}, {}
    for name, settings in methods(bot, limit).items():
        print(f"answering {len(contexts)} contexts: {name}", file=sys.stderr)
        drafts, seconds = answer(bot, contexts, settings, seed)
        report["decoding"][name] = measure(bot, contexts, drafts, limit)
        tokens = sum(len(draft.token_ids) + 1 for draft in drafts)
        timing[name] = {"seconds": seconds, "tokens": tokens, "tokens_per_second": tokens / max(seconds, 1e-9)}
    write_json(output / REPORT, report)
    write_json(output / TIMING, timing)
    (output / MARKDOWN).write_text(to_markdown(report), encoding="utf-8")
    return {"report": report, "timing": timing}


def _scorable(dialogues: Sequence[Sequence[str]], data: str | Path) -> list[list[str]]:
    kept = [list(turns) for turns in dialogues if turns]
    if not kept:
        raise FileError(f"{data} holds no dialogue to evaluate on; give a file with at least one.")
    return kept


def _quality(bot: Chatbot, dialogues: Sequence[Sequence[str]]) -> dict:
    """Nothing is dropped, cut or normalised away but the spaces beside CJK characters."""
    print(f"scoring {len(dialogues)} dialogues", file=sys.stderr)
    ids = [[bot.tokenizer.encode(join_spaces(turn)) for turn in turns] for turns in dialogues]
    quality = measure_quality(bot.model, bot.layout, ids, [count_units(turns) for turns in dialogues])
    return {
        "nats_per_unit": quality.nats_per_unit,
        "perplexity_per_unit": math.exp(quality.nats_per_unit),
        "nats_per_token": quality.nats / quality.tokens,
        "units": quality.units,
        "tokens": quality.tokens,
        "dialogues": quality.dialogues,
    }


def _baselines(source: str | Path, dialogues: Sequence[Sequence[str]]) -> dict:
    held_out = {tuple(map(clean_turn, turns)) for turns in dialogues}
    training = [turns for turns in read_dialogues(source, "train") if tuple(map(clean_turn, turns)) not in held_out]
    if not training:
        raise FileError(f"{source} holds no dialogue for the baselines that is not evaluated on; give other data.")
    names = {1: "unigram", 3: "witten_bell_trigram"}
    result: dict = {"trained_on": Path(source).name, "dialogues": len(training)}
    for order, name in names.items():
        print(f"baseline: {name} on {len(training)} dialogues", file=sys.stderr)
        result[name] = WittenBell(order, training).nats_per_unit(dialogues)
    return result


def to_markdown(report: dict, timing: dict | None = None) -> str:
    """The report for people; `timing` adds a column of tokens/s, for the terminal only."""
    quality, floor = report["quality"], report["floor"]
    lines = [
        f"# {report['checkpoint']} on {report['data']}",
        "",
        "| model | nats/unit | perplexity/unit |",
        "|---|--:|--:|",
        f"| {report['checkpoint']} | {quality['nats_per_unit']:.4f} | {quality['perplexity_per_unit']:.2f} |",
    ]
    for name in ("witten_bell_trigram", "unigram"):
        if name in report.get("baselines", {}):
            value = report["baselines"][name]
            lines.append(f"| {name.replace('_', ' ')} | {value:.4f} | {math.exp(value):.2f} |")
    lines += [
        "",
        f"{quality['dialogues']} dialogues, {quality['units']} units (characters and ends of turn), seed {report['seed']},"
        f" EOS floor t0 {floor['start_tokens']}, delta {floor['delta_tokens']}, limit {floor['limit_tokens']}.",
        "",
    ]
    limit = f"r_{report['limit']}"
    columns = ["dist_1", "dist_2", "ent_4", "rep_4", "repetitive", "echo", limit, "longest_tokens", "mean_characters"]
    header = [
        "decoding",
        "Dist-1",
        "Dist-2",
        "Ent-4",
        "rep-4",
        "repetitive",
        "echo",
        limit,
        "longest",
        "characters (reference)",
        "eos/floor/limit",
    ]
    if timing is not None:
        header.append("tokens/s")
    lines += ["| " + " | ".join(header) + " |", "|---|" + "--:|" * (len(header) - 1)]
    for name, row in report["decoding"].items():
        cells = [f"{row[key]:.3f}" if isinstance(row[key], float) else str(row[key]) for key in columns]
        cells[-1] = f"{row['mean_characters']:.1f} ({row['reference_mean_characters']:.1f})"
        cells.append("/".join(str(count) for count in row["stop_reasons"].values()))
        if timing is not None:
            cells.append(f"{timing[name]['tokens_per_second']:.0f}")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += ["", "## Replies side by side", ""]
    first = next(iter(report["decoding"].values()))
    for index, example in enumerate(first["examples"]):
        lines.append("- " + " / ".join(map(_cell, example["context"])))
        lines.append(f"  - *reference*: {_cell(example['reference'])}")
        for name, row in report["decoding"].items():
            lines.append(f"  - {name}: {_cell(row['examples'][index]['reply'])}")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    return " ".join(text.split())
