"""One evaluation: checkpoints x dialogues x decoding methods, as report.json, report.md and report.html.

Nothing in the report was produced by a clock; times are in timing.json beside it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import asdict, fields
from itertools import islice
from pathlib import Path

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import FileError
from chatbot.evaluation import intervals
from chatbot.evaluation.answering import Answer, Context, answer_all, make_contexts, reference_nats
from chatbot.evaluation.cache import FOLDER, Store, hash_of, identity_of
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.likeness import Likeness
from chatbot.evaluation.measure import Replies, common_budgets, measure
from chatbot.evaluation.ngram import WittenBell
from chatbot.evaluation.report.html import to_html
from chatbot.evaluation.report.markdown import to_markdown
from chatbot.model.scoring import score_turns
from chatbot.storage import exclusive, replacing, write_json
from chatbot.text.dialogue import clean_turn, count_units, join_spaces
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.prepared_set import is_prepared_set

REPORT, MARKDOWN, PAGE, TIMING = "report.json", "report.md", "report.html", "timing.json"
TURNS = 6
"""Turns that nats/unit is told apart for; those after them are one."""


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
) -> dict:
    """Measures checkpoints on dialogues and writes the report; one that was stopped goes on.

    Args:
        bots: The checkpoints, all on the same dialogues.
        data: Dialogue JSONL, a folder of such files, or a prepared set (its valid split).
        output: Folder for the reports and what has been worked out so far (`replies/`).
        baseline: Where the n-gram baselines learn from (a prepared set's train split, or JSONL); None leaves them out.
        grid: The decoding methods; None is the default one.
        max_contexts: Most contexts that are answered.
        max_dialogues: Most dialogues that are scored; None scores all.
        seed: Context i is answered with seed + i.
        vectors: A checkpoint folder whose token vectors measure likeness; None is the first one's, if it has any.

    Raises:
        FileError, GridError, CheckpointError: What the person has to change, in one sentence.
    """
    output, grid = Path(output), grid or Grid.read()
    methods = [grid.settings(bot.settings, bot.within_limits) for bot in bots]
    found = _scorable(list(islice(read_dialogues(data), max_dialogues)), data)
    dialogues = [turns for turns in found if all(_fits(bot, turns) for bot in bots)]
    contexts = make_contexts(dialogues, max_contexts)
    if not contexts:
        raise FileError(f"{data} holds no dialogue of two turns and more to answer; give a file with one.")
    likeness = _likeness(bots, vectors)
    output.mkdir(parents=True, exist_ok=True)
    error = FileError(f"Another evaluation is writing to {output}; wait for it or give another --output.")
    with exclusive(output / FOLDER, error):
        store = Store(output)
        report: dict = {
            "data": Path(data).name + (" (valid split)" if is_prepared_set(Path(data)) else ""),
            "seed": seed,
            "dialogues": len(dialogues),
            "left_out": len(found) - len(dialogues),
            "contexts": len(contexts),
            "units": sum(map(count_units, dialogues)),
            "lengths": list(grid.lengths),
            "vectors": None if likeness is None else Path(vectors or bots[0].folder).name,
        }
        if baseline is not None:
            report["baselines"] = _baselines(baseline, dialogues)
        report["checkpoints"], timing, answers = [], {}, []
        for name, bot, settings in zip(_names(bots), bots, methods, strict=True):
            part, spent, replies = _checkpoint(name, bot, settings, dialogues, contexts, grid, seed, store)
            report["checkpoints"].append(part)
            answers.append(replies)
            timing[name] = spent
        _measure(report, answers, contexts, grid, likeness)
        _write(output, report, timing)
        store.remove_others()
    return {"report": report, "timing": timing}


def _fits(bot: Chatbot, turns: Sequence[str]) -> bool:
    """Whether a model of limited length can score a dialogue, and read it to answer with half of its length left."""
    if bot.model.max_tokens is None:
        return True
    ids = [bot.tokenizer.encode(join_spaces(turn)) for turn in turns]
    longest = max(map(len, ids)) + bot.layout.opening_tokens + bot.layout.turn_tokens
    return len(bot.layout.lay_out(ids).input_ids) <= bot.model.max_tokens and longest <= bot.model.max_tokens // 2


def _checkpoint(
    name: str,
    bot: Chatbot,
    methods: dict[str, ReplySettings],
    dialogues: Sequence[Sequence[str]],
    contexts: Sequence[Context],
    grid: Grid,
    seed: int,
    store: Store,
) -> tuple[dict, dict, dict[str, Replies]]:
    """A checkpoint's part of the report, its times, and its replies."""
    part = {"name": name, "settings": _shown(bot.settings), "quality": _quality(bot, dialogues, grid, store)}
    found, spent = answer_all(bot, contexts, methods, seed, store)
    nats = reference_nats(bot, contexts, methods, seed, store)
    part["decoding"] = {key: _about(one, bot, contexts, nats, key) for key, one in methods.items()}
    times = {
        key: {**asdict(each), "tokens_per_second": each.tokens / max(each.seconds, 1e-9)} for key, each in spent.items()
    }
    return part, times, {key: replies_of(bot, contexts, each) for key, each in found.items()}


def _write(output: Path, report: dict, timing: dict) -> None:
    write_json(output / REPORT, report)
    write_json(output / TIMING, timing)
    for name, text in ((MARKDOWN, to_markdown(report)), (PAGE, to_html(report))):
        with replacing(output / name) as temporary:
            temporary.write_text(text, encoding="utf-8")


def _names(bots: Sequence[Chatbot]) -> list[str]:
    names = [bot.name for bot in bots]
    return [f"{name} ({number})" if names.count(name) > 1 else name for number, name in enumerate(names, 1)]


def _scorable(dialogues: Sequence[Sequence[str]], data: str | Path) -> list[list[str]]:
    kept = [list(turns) for turns in dialogues if turns]
    if not kept:
        raise FileError(f"{data} holds no dialogue to evaluate on; give a file with at least one.")
    return kept


def _likeness(bots: Sequence[Chatbot], vectors: str | Path | None) -> Likeness | None:
    if vectors is not None:
        return Likeness.load(vectors)
    return Likeness.load(bots[0].folder) if Likeness.is_in(bots[0].folder) else None


def _shown(settings: ReplySettings) -> dict:
    """The settings that are not the defaults, and the limits that always matter."""
    default = {field.name: field.default for field in fields(ReplySettings)}
    changed = {name: value for name, value in asdict(settings).items() if value != default[name]}
    always = ("method", "temperature", "top_p", "floor_start_tokens", "floor_delta_tokens")
    return {**{name: getattr(settings, name) for name in always}, **changed}


def _quality(bot: Chatbot, dialogues: Sequence[Sequence[str]], grid: Grid, store: Store) -> dict:
    """Nothing is dropped, cut or normalised away but the spaces beside CJK characters."""
    lines = store.open(f"{bot.name}-quality", {"bot": identity_of(bot), "dialogues": hash_of(dialogues)})
    ids = [[bot.tokenizer.encode(join_spaces(turn)) for turn in turns] for turns in dialogues]
    if not lines.rows:
        print(f"{bot.name}: scoring {len(dialogues)} dialogues", file=sys.stderr)
        lines.add({"nats": score_turns(bot.model, bot.layout, ids)})
    nats = lines.rows[0]["nats"]
    units = [[count_units([turn]) for turn in turns] for turns in dialogues]
    tokens = sum(len(turn) + 1 for turns in ids for turn in turns)
    total, value = sum(map(sum, nats)), sum(map(sum, nats)) / sum(map(sum, units))
    by_turn = []
    for turn in range(TURNS + 1):
        part = slice(turn, turn + 1 if turn < TURNS else None)
        above, below = [sum(each[part]) for each in nats], [sum(each[part]) for each in units]
        if sum(below):
            name = str(turn + 1) if turn < TURNS else f"{TURNS + 1} and later"
            entry = {"turn": name, "units": sum(below), "nats_per_unit": sum(above) / sum(below)}
            by_turn.append({**entry, "interval": list(intervals.ratio(above, below, grid.resamples))})
    return {
        "nats_per_unit": value,
        "interval": list(intervals.ratio(list(map(sum, nats)), list(map(sum, units)), grid.resamples)),
        "perplexity_per_unit": math.exp(value),
        "nats_per_token": total / tokens,
        "units": sum(map(sum, units)),
        "tokens": tokens,
        "dialogues": len(dialogues),
        "by_turn": by_turn,
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


def _about(
    settings: ReplySettings, bot: Chatbot, contexts: Sequence[Context], nats: dict[str, list[float]], name: str
) -> dict:
    """A method's settings, its bound, and what it makes of the references' probability."""
    units = [count_units([context.reference]) for context in contexts]
    own, ruled = nats[""], nats[name]
    allowed = [place for place, value in enumerate(ruled) if value != math.inf]
    row = {"settings": _shown(settings), "bound_tokens": settings.bound_tokens}
    row["forbidden_references"] = 1 - len(allowed) / len(contexts)
    cost = sum(ruled[place] - own[place] for place in allowed) / max(1, sum(units[place] for place in allowed))
    row["reference_nats_per_unit"] = sum(own) / sum(units)
    row["reference_cost_nats_per_unit"] = cost if len(allowed) == len(contexts) else None
    return row


def replies_of(bot: Chatbot, contexts: Sequence[Context], answers: Sequence[Answer]) -> Replies:
    """A method's answers as a person sees them."""
    texts = [bot.tokenizer.decode_complete(answer.token_ids).strip() for answer in answers]
    return Replies(texts, contexts, answers)


def _measure(
    report: dict, answers: list[dict[str, Replies]], contexts: Sequence[Context], grid: Grid, likeness: Likeness | None
) -> None:
    """Adds the numbers, which share their budgets, and the examples."""
    people = Replies([context.reference for context in contexts], contexts)
    everyone = [people, *(replies for each in answers for replies in each.values())]
    report["budgets"] = budgets = common_budgets(everyone, grid)
    print(f"measuring {len(everyone) - 1} times {len(contexts)} replies", file=sys.stderr)
    report["reference"] = measure(people, grid, budgets, likeness)
    for part, found in zip(report["checkpoints"], answers, strict=True):
        for name, replies in found.items():
            part["decoding"][name] |= measure(replies, grid, budgets, likeness)
    stride = max(1, len(contexts) // grid.examples)
    report["examples"] = [
        {
            "context": list(contexts[place].turns),
            "reference": contexts[place].reference,
            "replies": [
                [part["name"], name, replies.texts[place], replies.answers[place].stop_reason]
                for part, found in zip(report["checkpoints"], answers, strict=True)
                for name, replies in found.items()
            ],
        }
        for place in range(0, len(contexts), stride)[: grid.examples]
    ]
