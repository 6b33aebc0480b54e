"""One evaluation: checkpoints x dialogues x decoding methods, as report.json, report.md and report.html.

The report does not depend on a clock: the same inputs and seed give the same bytes. Times are in timing.json beside it.
report.md is in the language of the terminal, and report.html has both languages.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import FileError
from chatbot.evaluation.answering import Answer, Context, answer_all, make_contexts
from chatbot.evaluation.cache import FOLDER, ResultCache
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.likeness import Likeness
from chatbot.evaluation.metrics import Replies, common_budgets, measure
from chatbot.evaluation.quality import compare_quality, measure_baselines, measure_quality
from chatbot.evaluation.references import MODEL_ALONE, reference_nats
from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.report.markdown import to_markdown
from chatbot.evaluation.verdict import FEW_CONTEXTS, verdict, warnings
from chatbot.language.translation import is_chinese, translate
from chatbot.storage import exclusive, replacing, write_json
from chatbot.text.dialogue import count_units, join_spaces
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.prepared_set import is_prepared_set

REPORT, MARKDOWN, PAGE, TIMING = "report.json", "report.md", "report.html", "timing.json"
SHOWN_SETTINGS = ("method", "temperature", "top_p", "floor_start_tokens", "floor_delta_tokens")
"""Settings that a report shows even if they have their default values."""

Report = dict[str, Any]


@dataclass(frozen=True)
class _Inputs:
    """Inputs that are the same for all checkpoints of a report."""

    dialogues: list[list[str]]
    contexts: list[Context]
    grid: Grid
    seed: int
    cache: ResultCache


def evaluate(
    bots: Sequence[Chatbot],
    data: str | Path,
    output: str | Path,
    baseline: str | Path | None = None,
    grid: Grid | None = None,
    max_contexts: int = 1000,
    max_dialogues: int | None = None,
    seed: int = 0,
    vectors: str | Path | None = None,
) -> dict[str, Any]:
    """Measure checkpoints on dialogues and write the report; a stopped evaluation continues.

    Args:
        bots: The checkpoints, all measured on the same dialogues.
        data: Dialogue JSONL, a folder of such files, or a prepared set (its valid split).
        output: Folder for the reports and the cache (`replies/`).
        baseline: Training data of the n-gram baselines (a prepared set's train split, or JSONL); None for no baselines.
        grid: The decoding methods; None for the default grid. With few contexts, only its methods of `few` are compared.
        max_contexts: Maximum number of contexts to answer.
        max_dialogues: Maximum number of dialogues to read; None reads all.
        seed: Context i is answered with seed `seed + i`.
        vectors: Checkpoint folder with token vectors for likeness; None takes those of the first checkpoint, if any.

    Returns:
        `report`, the content of report.json, and `timing`, the content of timing.json.

    Raises:
        FileError, GridError, CheckpointError: An input cannot be used; the message says what to change.
    """
    output, whole = Path(output), grid or Grid.read()
    for bot in bots:
        whole.settings(bot.settings, bot.within_limits)  # a fault in any method is reported before the data is read
    dialogues, left_out = read_fitting(bots, data, max_dialogues)
    contexts = make_contexts(dialogues, max_contexts)
    if not contexts:
        raise FileError(f"{data} has no dialogue of at least two turns to answer. Check --data.")
    grid = whole.for_contexts(len(contexts))
    methods = [grid.settings(bot.settings, bot.within_limits) for bot in bots]
    likeness, vectors_name = _load_likeness(bots, vectors)
    output.mkdir(parents=True, exist_ok=True)
    error = FileError(f"Another evaluation is writing to {output}. Wait for it or give another --output.")
    with exclusive(output / FOLDER, error):
        inputs = _Inputs(dialogues, contexts, grid, seed, ResultCache(output))
        report: Report = {
            "data": Path(data).name + (" (valid split)" if is_prepared_set(Path(data)) else ""),
            "seed": seed,
            "dialogues": len(dialogues),
            "left_out": left_out,
            "contexts": len(contexts),
            "limited_by": _limiting_option(dialogues, len(contexts), len(dialogues) + left_out == max_dialogues),
            "methods": {name: grid.about.get(name, "") for name in grid.methods},
            "left_out_methods": len(whole.methods) - len(grid.methods),
            "units": sum(map(count_units, dialogues)),
            "lengths": list(grid.lengths),
            "vectors": vectors_name,
        }
        if baseline is not None:
            report["baselines"] = measure_baselines(baseline, dialogues)
        timing = _add_checkpoints(report, bots, methods, inputs, likeness)
        report["verdict"] = verdict(report)
        report["warnings"] = warnings(report, [bot.folder for bot in bots], data)
        _write(output, report, timing)
        inputs.cache.remove_unused()
    return {"report": report, "timing": timing}


def _limiting_option(dialogues: Sequence[Sequence[str]], contexts: int, is_cut: bool) -> str | None:
    """Return the option that keeps the contexts few; None if they are enough, or if the data has no more.

    Args:
        dialogues: The dialogues that were read.
        contexts: Number of their contexts that are answered.
        is_cut: Whether as many dialogues were read as --max-dialogues allows.
    """
    if contexts >= FEW_CONTEXTS:
        return None
    if len(make_contexts(dialogues, contexts + 1)) > contexts:
        return "--contexts"
    return "--max-dialogues" if is_cut else None


def read_fitting(bots: Sequence[Chatbot], data: str | Path, max_dialogues: int | None) -> tuple[list[list[str]], int]:
    """Return the dialogues that every bot can score, and the number of dialogues that were left out.

    Raises:
        FileError: The data cannot be read or has no dialogue.
    """
    dialogues = [list(turns) for turns in islice(read_dialogues(data), max_dialogues) if turns]
    if not dialogues:
        raise FileError(f"{data} has no dialogue to evaluate on. Check --data.")
    fitting = [turns for turns in dialogues if all(_fits(bot, turns) for bot in bots)]
    return fitting, len(dialogues) - len(fitting)


def _fits(bot: Chatbot, turns: Sequence[str]) -> bool:
    """Whether a dialogue is not longer than a model allows, and each of its turns at most half as long as that."""
    limit = bot.model.max_tokens
    if limit is None:
        return True
    ids = [bot.tokenizer.encode(join_spaces(turn)) for turn in turns]
    longest = max(map(len, ids)) + bot.layout.opening_tokens + bot.layout.turn_tokens
    return len(bot.layout.lay_out(ids).input_ids) <= limit and longest <= limit // 2


def _load_likeness(bots: Sequence[Chatbot], vectors: str | Path | None) -> tuple[Likeness | None, str | None]:
    """Return the measure of likeness and the name of the folder of its vectors; None without vectors.

    Raises:
        CheckpointError, TokenizerError: The vectors or the tokenizer are missing or damaged.
    """
    if vectors is not None:
        return Likeness.load(vectors), Path(vectors).name
    folder = bots[0].folder
    if folder is None or not Likeness.is_in(folder):
        return None, None
    return Likeness.load(folder), folder.name


def _add_checkpoints(
    report: Report,
    bots: Sequence[Chatbot],
    methods: Sequence[dict[str, ReplySettings]],
    inputs: _Inputs,
    likeness: Likeness | None,
) -> dict[str, Any]:
    """Add quality, metrics and examples of all checkpoints to the report and return the times."""
    timing: dict[str, Any] = {}
    replies: list[dict[str, Replies]] = []
    report["checkpoints"] = []
    for name, bot, settings in zip(unique_names([bot.name for bot in bots]), bots, methods, strict=True):
        part, timing[name], answered = _evaluate_checkpoint(name, bot, settings, inputs)
        report["checkpoints"].append(part)
        replies.append(answered)
    if len(bots) > 1:
        report["difference"] = compare_quality(report["checkpoints"], inputs.dialogues, inputs.grid.resamples)
    for part in report["checkpoints"]:
        del part["quality"]["dialogue_nats"]
    _add_metrics(report, replies, inputs, likeness)
    _add_examples(report, replies, inputs)
    return timing


def unique_names(names: Sequence[str]) -> list[str]:
    """Return the names, with a number after each name that occurs more than once."""
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _evaluate_checkpoint(
    name: str, bot: Chatbot, methods: dict[str, ReplySettings], inputs: _Inputs
) -> tuple[Report, dict[str, Any], dict[str, Replies]]:
    """Return a checkpoint's part of the report (without metrics of the replies), its times and its replies."""
    contexts, cache = inputs.contexts, inputs.cache
    part: Report = {
        "name": name,
        "settings": _shown(bot.settings),
        "quality": measure_quality(bot, inputs.dialogues, inputs.grid.resamples, cache),
    }
    answers, costs = answer_all(bot, contexts, methods, inputs.seed, cache)
    nats = reference_nats(bot, contexts, methods, cache)
    part["decoding"] = {
        method: {
            "settings": _shown(settings),
            "bound_tokens": settings.bound_tokens,
            **_cost_on_references(contexts, nats[MODEL_ALONE], nats[method]),
        }
        for method, settings in methods.items()
    }
    times = {
        method: {**asdict(cost), "tokens_per_second": cost.tokens / max(cost.seconds, 1e-9)}
        for method, cost in costs.items()
    }
    return part, times, {method: replies_of(bot, contexts, given) for method, given in answers.items()}


def _shown(settings: ReplySettings) -> dict[str, Any]:
    """Return the settings in `SHOWN_SETTINGS` and all settings that differ from the defaults."""
    defaults = {field.name: field.default for field in fields(ReplySettings)}
    values = asdict(settings)
    shown = {name: values[name] for name in SHOWN_SETTINGS}
    return shown | {name: value for name, value in values.items() if value != defaults[name]}


def _cost_on_references(contexts: Sequence[Context], alone: list[float], ruled: list[float]) -> dict[str, Any]:
    """Return the nats/unit that a method's rules add to the references.

    Args:
        contexts: Contexts with the references.
        alone: Nats of each reference under the model.
        ruled: Nats of each reference under the method's rules; infinite if a rule forbids the reference.
    """
    units = [count_units([context.reference]) for context in contexts]
    allowed = [index for index, value in enumerate(ruled) if value != math.inf]
    added = sum(ruled[index] - alone[index] for index in allowed)
    cost = added / max(1, sum(units[index] for index in allowed))
    return {
        "forbidden_references": 1 - len(allowed) / len(contexts),
        "reference_nats_per_unit": sum(alone) / sum(units),
        "reference_cost_nats_per_unit": cost if len(allowed) == len(contexts) else None,
    }


def replies_of(bot: Chatbot, contexts: Sequence[Context], answers: Sequence[Answer]) -> Replies:
    """Return a method's answers as texts, as a person sees them."""
    texts = [bot.tokenizer.decode_complete(answer.token_ids).strip() for answer in answers]
    return Replies(texts, contexts, answers)


def _add_metrics(report: Report, replies: list[dict[str, Replies]], inputs: _Inputs, likeness: Likeness | None) -> None:
    """Add the metrics of people's and all methods' replies; diversity is measured on the same amount of text."""
    contexts, grid = inputs.contexts, inputs.grid
    people = Replies([context.reference for context in contexts], contexts)
    of_methods = [one for by_method in replies for one in by_method.values()]
    report["budgets"] = budgets = common_budgets([people, *of_methods], grid)
    report["reference"] = measure(people, grid, budgets, likeness)
    bar = tqdm(total=len(of_methods), desc=translate("measuring"), file=sys.stderr, mininterval=1)
    for part, by_method in zip(report["checkpoints"], replies, strict=True):
        for method, one in by_method.items():
            part["decoding"][method] |= measure(one, grid, budgets, likeness)
            bar.update()
    bar.close()


def _add_examples(report: Report, replies: list[dict[str, Replies]], inputs: _Inputs) -> None:
    """Add some contexts with the replies of all checkpoints and methods."""
    contexts, count = inputs.contexts, inputs.grid.examples
    names = [part["name"] for part in report["checkpoints"]]
    report["examples"] = []
    for index in range(0, len(contexts), max(1, len(contexts) // count))[:count]:
        shown = []
        for name, by_method in zip(names, replies, strict=True):
            for method, one in by_method.items():
                stop_reason = one.answers[index].stop_reason if one.answers is not None else ""
                shown.append([name, method, one.texts[index], stop_reason])
        context = contexts[index]
        example = {"context": list(context.turns), "reference": context.reference, "replies": shown}
        report["examples"].append(example)


def _write(output: Path, report: Report, timing: dict[str, Any]) -> None:
    write_json(output / REPORT, report)
    write_json(output / TIMING, timing)
    for name, text in ((MARKDOWN, to_markdown(report, is_chinese())), (PAGE, to_html(report))):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
