"""How well checkpoints and n-gram baselines predict dialogues, in nats/unit: nats per character or end of turn."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from chatbot.chat.bot import Chatbot
from chatbot.errors import FileError
from chatbot.evaluation import intervals
from chatbot.evaluation.cache import ResultCache, hash_of, identity_of
from chatbot.evaluation.ngram import WittenBell
from chatbot.language.translation import translate
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import clean_turn, count_units, join_spaces
from chatbot.text.dialogue_files import read_dialogues

SEPARATE_TURNS = 6
"""The nats/unit of this many turns from the start are reported separately, those of all later turns together."""

BASELINES = {"unigram": 1, "witten_bell_trigram": 3}
"""Order of the n-gram model of each baseline."""


def measure_quality(
    bot: Chatbot, dialogues: Sequence[Sequence[str]], resamples: int, cache: ResultCache
) -> dict[str, Any]:
    """Return nats/unit of all turns with full history, in total and by turn, with 95 % intervals.

    The text is scored as it is; only the spaces beside CJK characters are removed.

    Args:
        bot: The bot.
        dialogues: Dialogues that are not too long for the model.
        resamples: Bootstrap resamples of the intervals.
        cache: Cache of this report.

    Returns:
        The quality for report.json, and `dialogue_nats`: nats of each dialogue, for `compare_quality`.
    """
    file = cache.open(f"{bot.name}-quality", {"bot": identity_of(bot), "dialogues": hash_of(dialogues)})
    ids = [[bot.tokenizer.encode(join_spaces(turn)) for turn in turns] for turns in dialogues]
    if not file.rows:
        with tqdm(total=len(ids), desc=translate(f"{bot.name}: scoring"), file=sys.stderr, mininterval=1) as bar:
            file.add({"nats": score_turns(bot.model, bot.layout, ids, advance=bar.update)})
    nats: list[list[float]] = file.rows[0]["nats"]
    units = [[count_units([turn]) for turn in turns] for turns in dialogues]
    tokens = sum(len(turn) + 1 for turns in ids for turn in turns)
    total_nats, total_units = sum(map(sum, nats)), sum(map(sum, units))
    value = total_nats / total_units
    return {
        "nats_per_unit": value,
        "interval": list(intervals.ratio(list(map(sum, nats)), list(map(sum, units)), resamples)),
        "perplexity_per_unit": math.exp(value),
        "nats_per_token": total_nats / tokens,
        "units": total_units,
        "tokens": tokens,
        "dialogues": len(dialogues),
        "by_turn": _by_turn(nats, units, resamples),
        "dialogue_nats": list(map(sum, nats)),
    }


def compare_quality(
    parts: Sequence[dict[str, Any]], dialogues: Sequence[Sequence[str]], resamples: int
) -> dict[str, Any]:
    """Compare the two checkpoints with the lowest nats/unit dialogue by dialogue.

    Both have scored the same dialogues, so the interval of the difference is much narrower than the difference between
    their two intervals: a dialogue that is hard for one is hard for the other.

    Args:
        parts: Parts of the report, whose `quality` has `dialogue_nats`.
        dialogues: The dialogues.
        resamples: Bootstrap resamples of the interval.

    Returns:
        `names` of the better and the other checkpoint; `nats_per_unit`, by which the other is worse, its `interval`, and
        the number of `dialogues`.
    """
    first, second = sorted(parts, key=lambda part: part["quality"]["nats_per_unit"])[:2]
    pairs = zip(first["quality"]["dialogue_nats"], second["quality"]["dialogue_nats"], strict=True)
    worse, units = [other - nats for nats, other in pairs], list(map(count_units, dialogues))
    return {
        "names": [first["name"], second["name"]],
        "nats_per_unit": sum(worse) / sum(units),
        "interval": list(intervals.ratio(worse, units, resamples)),
        "dialogues": len(dialogues),
    }


def _by_turn(nats: list[list[float]], units: list[list[int]], resamples: int) -> list[dict[str, Any]]:
    """Return the number of units and the nats/unit by turn; all turns after the first ones count together."""
    entries = []
    for turn in range(SEPARATE_TURNS + 1):
        is_last = turn == SEPARATE_TURNS
        part = slice(turn, None if is_last else turn + 1)
        turn_nats, turn_units = [sum(values[part]) for values in nats], [sum(values[part]) for values in units]
        total = sum(turn_units)
        if total:
            entries.append(
                {
                    "turn": f"{SEPARATE_TURNS + 1} and later" if is_last else str(turn + 1),
                    "units": total,
                    "nats_per_unit": sum(turn_nats) / total,
                    "interval": list(intervals.ratio(turn_nats, turn_units, resamples)),
                }
            )
    return entries


def measure_baselines(source: str | Path, dialogues: Sequence[Sequence[str]]) -> dict[str, Any]:
    """Return nats/unit of n-gram models that are trained on `source` without the evaluated dialogues.

    Raises:
        FileError: The source cannot be read, or has only evaluated dialogues.
    """
    held_out = {tuple(map(clean_turn, turns)) for turns in dialogues}
    training = [turns for turns in read_dialogues(source, "train") if tuple(map(clean_turn, turns)) not in held_out]
    if not training:
        raise FileError(
            f"Cannot train the baselines on {source}: it has no dialogue that is not evaluated on."
            " Give other data with --baseline."
        )
    result: dict[str, Any] = {"trained_on": Path(source).name, "dialogues": len(training)}
    for name, order in BASELINES.items():
        print(translate(f"baseline: {name} on {len(training)} dialogues"), file=sys.stderr)
        result[name] = WittenBell(order, training).nats_per_unit(dialogues)
    return result
