"""Measurement of what a bot says after it was named and of what it has forgotten, with limits for both."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from chatbot.chat.bot import Chatbot
from chatbot.evaluation.answering import make_contexts
from chatbot.evaluation.aptness.choosing import reply_hits
from chatbot.model.scoring import score_dialogues
from chatbot.text.dialogue import count_units
from training.naming.dialogues import ABOUT_BOT, Identity, held_out_dialogues, questions

MIN_NAME_SHARE, MAX_UNASKED_SHARE = 0.90, 0.03
MAX_LOSS = 0.05
"""Maximum increase of nats/unit on a set of dialogues; a unit is a character or an end of turn."""
MAX_APTNESS_LOSS = 0.05
"""Maximum decrease of the share of true replies that the bot prefers to nine others."""
CHOICES = 100
"""Dialogues of the choice among ten replies."""
SEEDS = 2
"""Replies to each question."""
OTHERS = "others"
"""Name of the held-out dialogues of this project in the measurements."""


@dataclass(frozen=True)
class Knowledge:
    """How well a bot predicts dialogues.

    Attributes:
        nats: nats/unit by set.
        choice: Share of held-out messages for which the true reply is preferred to nine others.
    """

    nats: dict[str, float]
    choice: float


def measure_knowledge(bot: Chatbot, sets: dict[str, list[list[str]]]) -> Knowledge:
    """Score sets of dialogues, and let the bot choose among ten replies (`chatbot.evaluation.aptness.choosing`)."""
    nats = {name: _nats_per_unit(bot, dialogues) for name, dialogues in sets.items()}
    hits = reply_hits(bot, make_contexts(sets[OTHERS], CHOICES))
    return Knowledge(nats, hits["hits"] if hits else 0.0)


def _nats_per_unit(bot: Chatbot, dialogues: Sequence[list[str]]) -> float:
    encoded = [[bot.reader.ids(turn) for turn in turns] for turns in dialogues]
    return sum(score_dialogues(bot.model, bot.layout, encoded)) / sum(map(count_units, dialogues))


def measure_identity(bot: Chatbot, identity: Identity) -> dict[str, Any]:
    """Ask held-out questions and send everyday messages; return the shares of each kind, and the wrong replies."""
    named, wrong = _ask(bot, questions("name", held_out=True), lambda reply: identity.name in reply)
    result: dict[str, Any] = {"name": named, "wrong": wrong}
    if identity.maker:
        said = re.compile(f"{re.escape(identity.maker)}.{{0,6}}(做|教|训练|写|造|养|创)|是{re.escape(identity.maker)}")
        result["maker"], result["wrong_maker"] = _ask(
            bot, questions("maker", held_out=True), lambda reply: said.search(reply) is not None
        )
    messages = [turns[0] for turns in held_out_dialogues() if not ABOUT_BOT.search(turns[0])]
    clean, unasked = _ask(bot, messages, lambda reply: identity.name not in reply, seeds=1)
    return result | {"unasked": 1 - clean, "said_unasked": unasked, "messages": len(messages)}


def _ask(bot: Chatbot, texts: Sequence[str], is_right: Any, seeds: int = SEEDS) -> tuple[float, list[str]]:
    """Return the share of right replies, and `message -> reply` for the wrong ones."""
    replies = [(text, bot.reply([text], seed=seed)) for text in texts for seed in range(seeds)]
    wrong = [f"{text} -> {reply}" for text, reply in replies if not is_right(reply)]
    return 1 - len(wrong) / len(replies), wrong


def find_failures(identity: dict[str, Any], before: Knowledge, after: Knowledge, max_loss: float) -> list[str]:
    """Return one sentence for every limit that the bot does not keep."""
    faults = []
    least = f"{MIN_NAME_SHARE:.0%}"
    if identity["name"] < MIN_NAME_SHARE:
        faults.append(f"it says its name to {identity['name']:.0%} of the questions, and the limit is {least}")
    if identity.get("maker", 1.0) < MIN_NAME_SHARE:
        faults.append(f"it names its maker to {identity['maker']:.0%} of the questions, and the limit is {least}")
    if identity["unasked"] > MAX_UNASKED_SHARE:
        most = f"{MAX_UNASKED_SHARE:.0%}"
        faults.append(f"it says its name unasked in {identity['unasked']:.1%} of the replies, and the limit is {most}")
    for name, nats in after.nats.items():
        rise = nats - before.nats[name]
        if rise > max_loss:
            faults.append(f"{name} rose by {rise:.3f} nats/unit, and the limit is {max_loss}")
    if before.choice - after.choice > MAX_APTNESS_LOSS:
        faults.append(
            f"it chooses the true reply in {after.choice:.0%} of the cases, and before in {before.choice:.0%}"
        )
    return faults
