"""Likeness of a bot to a person: nats of the person's held-out turns, and the length and punctuation of both.

The person speaks second in every dialogue (`xianliao-prepare --bot NAME`). A bot that has learnt only the subjects of the
chats predicts the turns of both sides better; one that has learnt the person gains more on the person's turns.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from chatbot.chat.bot import Chatbot
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import count_units

RESAMPLES = 1000
FEW_TURNS, FEW_DIALOGUES = 100, 8
"""Minimum numbers of held-out turns of the person, and of held-out dialogues, for a conclusion."""
MARKS = {
    "ends with 。！？~": re.compile(r"[。！？!?~～…]$"),
    "ends with a particle": re.compile(r"[呀啊呢吧啦哦嘛哈嗯噢喔呐]$"),
    "has 哈哈": re.compile("哈哈"),
    "has an emoji": re.compile("[\u2600-\u27bf\U0001f300-\U0001faff]|\\[[\u4e00-\u9fff]{1,4}\\]"),
    "asks": re.compile("[?？吗]"),
}
"""Marks of style, by name; the share of turns that match is measured."""


@dataclass(frozen=True)
class Costs:
    """Nats and units of the held-out dialogues, float64 `[dialogues, 2]`: of the others' turns and of the person's.

    Attributes:
        nats: Sum of -log p of the turns of each side.
        units: Units of these turns.
    """

    nats: np.ndarray
    units: np.ndarray

    def per_unit(self) -> tuple[float, float]:
        """Return the nats/unit of the others' turns and of the person's turns."""
        others, person = self.nats.sum(0) / self.units.sum(0)
        return float(others), float(person)


def measure_costs(bot: Chatbot, dialogues: Sequence[Sequence[str]]) -> Costs:
    """Score every turn with its full history."""
    encoded = [[bot.reader.ids(turn) for turn in turns] for turns in dialogues]
    scores = score_turns(bot.model, bot.layout, encoded)
    nats = [[sum(turns[0::2]), sum(turns[1::2])] for turns in scores]
    units = [[count_units(turns[0::2]), count_units(turns[1::2])] for turns in dialogues]
    return Costs(np.array(nats, float), np.array(units, float))


def gain(before: Costs, after: Costs) -> dict[str, Any]:
    """Return how much more the person's turns gained than the others' turns, in nats per unit (character or end of
    turn), with a 95 % interval.

    The interval is a percentile bootstrap over dialogues (Efron 1979).
    """
    saved, units = before.nats - after.nats, before.units
    counts = np.random.default_rng(0).multinomial(len(saved), np.full(len(saved), 1 / len(saved)), RESAMPLES)
    sums = (counts @ saved) / np.maximum(counts @ units, 1)
    more = saved.sum(0) / units.sum(0)
    low, high = np.percentile(sums[:, 1] - sums[:, 0], (2.5, 97.5))
    return {"more": float(more[1] - more[0]), "interval": (float(low), float(high))}


def style_of(turns: Sequence[str]) -> dict[str, float]:
    """Return the mean length in characters and the share of turns with each mark."""
    shares = {name: sum(map(bool, map(mark.search, turns))) / len(turns) for name, mark in MARKS.items()}
    return {"characters": sum(map(len, turns)) / len(turns), **shares}


def replies_to(bot: Chatbot, dialogues: Sequence[Sequence[str]], count: int) -> list[str]:
    """Return the bot's replies to at most `count` held-out histories, one per dialogue, with seeds 0, 1, …"""
    return [bot.reply(list(turns[:1]), seed=seed) for seed, turns in enumerate(dialogues[:count])]
