"""Measurement of what a bot says after it was named and of what it has forgotten, with limits for both."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from chatbot.chat.bot import Chatbot
from chatbot.chat.request import decode_requests
from chatbot.decoding.loop import prefill
from chatbot.evaluation.answering import make_contexts
from chatbot.evaluation.aptness.choosing import CHOICES as OFFERED
from chatbot.evaluation.aptness.choosing import reply_hits
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import count_units
from training.naming.dialogues import ABOUT_BOT, Identity, Part, questions, unseen_dialogues
from training.naming.results import Results

MIN_NAME_SHARE, MAX_UNASKED_SHARE = 0.90, 0.03
MAX_LOSS = 0.05
"""Maximum increase of nats/unit on a set of dialogues; a unit is a character or an end of turn."""
MAX_APTNESS_LOSS = 0.05
"""Maximum decrease of the share of true replies that the bot prefers to nine others."""
CHOICES = 100
"""Number of dialogues in which the bot chooses among ten replies."""
SEEDS = 2
"""Number of replies to each question."""
BATCH_SIZE = 16
"""Number of messages that are answered in one batch."""
Advance = Callable[[int], object]
"""Function that is called with the number of dialogues scored, or replies made, since its last call (a progress bar)."""
OTHERS = "others"
"""Name under which the measurements list the held-out dialogues of this project."""


@dataclass(frozen=True)
class Knowledge:
    """How well a bot predicts dialogues.

    Attributes:
        nats: nats/unit on each set, by the name of the set.
        choice: Share of held-out messages for which the true reply is preferred to nine others.
    """

    nats: dict[str, float]
    choice: float


def measure_knowledge(
    bot: Chatbot,
    sets: dict[str, list[list[str]]],
    choices: int = CHOICES,
    advance: Advance = lambda count: None,
    results: Results | None = None,
) -> Knowledge:
    """Score sets of dialogues, and let the bot choose among ten replies (`chatbot.evaluation.aptness.choosing`).

    Args:
        bot: The bot.
        sets: Dialogues by the name of their set.
        choices: Number of dialogues in which the bot chooses.
        advance: Progress bar.
        results: Results of a stopped command with the same weights, which are not measured again.
    """
    results = results or Results()
    nats = {}
    for name, dialogues in sets.items():
        if results.known("nats", dialogues):
            advance(len(dialogues))
        nats[name] = results.recall(partial(_nats_per_unit, bot, dialogues, advance), "nats", dialogues)
    if not choices:
        return Knowledge(nats, 0.0)
    others = sets[OTHERS]
    if results.known("choice", others, choices):
        advance(count_scored({OTHERS: others}, choices) - len(others))
    hits = results.recall(partial(_share_of_hits, bot, others, choices, advance), "choice", others, choices)
    return Knowledge(nats, hits)


def _share_of_hits(bot: Chatbot, dialogues: Sequence[list[str]], choices: int, advance: Advance) -> float:
    hits = reply_hits(bot, make_contexts(dialogues, choices), advance=advance)
    return hits["hits"] if hits else 0.0


def count_scored(sets: dict[str, list[list[str]]], choices: int = CHOICES) -> int:
    """Return how many scored dialogues `measure_knowledge` reports to `advance` in total."""
    offered = OFFERED * len(make_contexts(sets[OTHERS], choices)) if choices else 0
    return sum(map(len, sets.values())) + offered


def count_replies(identity: Identity, part: Part = "held_out", seeds: int = SEEDS) -> int:
    """Return how many replies `measure_identity` reports to `advance` in total."""
    asked = [questions(about, part) for about in ("name", "maker") if about == "name" or identity.maker]
    return seeds * sum(map(len, asked)) + len(_everyday(part))


def _everyday(part: Part) -> list[str]:
    """Return the messages of a part that do not ask about the bot."""
    return [turns[0] for turns in unseen_dialogues(part) if not ABOUT_BOT.search(turns[0])]


def _nats_per_unit(bot: Chatbot, dialogues: Sequence[list[str]], advance: Advance) -> float:
    encoded = [[bot.reader.ids(turn) for turn in turns] for turns in dialogues]
    nats = score_turns(bot.model, bot.layout, encoded, advance=advance)
    return sum(map(sum, nats)) / sum(map(count_units, dialogues))


def measure_identity(
    bot: Chatbot,
    identity: Identity,
    part: Part = "held_out",
    seeds: int = SEEDS,
    advance: Advance = lambda count: None,
    results: Results | None = None,
) -> dict[str, Any]:
    """Ask the questions of a part and send its everyday messages; `advance` and `results` as for `measure_knowledge`.

    Returns:
        Shares of the replies that say the name or the maker, and the replies that are wrong.
    """
    ask = partial(_ask, bot, advance=advance, results=results or Results())
    named, wrong = ask(questions("name", part), lambda reply: identity.name in reply, seeds)
    result: dict[str, Any] = {"name": named, "wrong": wrong}
    if identity.maker:
        maker_named = re.compile(
            f"{re.escape(identity.maker)}.{{0,6}}(做|教|训练|写|造|养|创)|是{re.escape(identity.maker)}"
        )
        result["maker"], result["wrong_maker"] = ask(
            questions("maker", part), lambda reply: maker_named.search(reply) is not None, seeds
        )
    messages = _everyday(part)
    clean, unasked = ask(messages, lambda reply: identity.name not in reply, 1)
    return result | {"unasked": 1 - clean, "said_unasked": unasked, "messages": len(messages)}


def _ask(
    bot: Chatbot, texts: Sequence[str], is_right: Any, seeds: int, advance: Advance, results: Results
) -> tuple[float, list[str]]:
    """Return the share of right replies, and `message -> reply` for the wrong ones."""
    asked = [(text, seed) for text in texts for seed in range(seeds)]
    replies = reply_all(bot, asked, advance, results)
    wrong = [f"{text} -> {reply}" for (text, _), reply in zip(asked, replies, strict=True) if not is_right(reply)]
    return 1 - len(wrong) / len(replies), wrong


def reply_all(
    bot: Chatbot,
    asked: Sequence[tuple[str, int]],
    advance: Advance = lambda count: None,
    results: Results | None = None,
) -> list[str]:
    """Return `bot.reply([message], seed)` for each message and seed, decoded in batches.

    `advance` and `results` are as for `measure_knowledge`; every batch is saved when it is answered.
    """
    results, replies = results or Results(), []
    for start in range(0, len(asked), BATCH_SIZE):
        batch = [list(one) for one in asked[start : start + BATCH_SIZE]]
        replies += results.recall(partial(_reply_batch, bot, batch), "replies", batch)
        advance(len(batch))
    return replies


def _reply_batch(bot: Chatbot, asked: Sequence[Sequence[Any]]) -> list[str]:
    requests = [bot.request([message], seed=seed) for message, seed in asked]
    replies = [request.fixed.text if request.fixed else "" for request in requests]
    indices = [index for index, request in enumerate(requests) if not request.fixed]
    if not indices:
        return replies
    batch = [requests[index] for index in indices]
    steps, logits = prefill(bot.model, [request.prompt for request in batch])
    *_, candidates = decode_requests(batch, steps, logits, bot.vocabulary)
    for index, request, drafts in zip(indices, batch, candidates, strict=True):
        replies[index] = bot.show(request, bot.best_draft(request, drafts)).text
    return replies


def find_failures(identity: dict[str, Any], before: Knowledge, after: Knowledge, max_loss: float) -> list[str]:
    """Return one sentence for every limit that the bot exceeds."""
    faults = []
    least = f"{MIN_NAME_SHARE:.0%}"
    if identity["name"] < MIN_NAME_SHARE:
        faults.append(f"it says its name in {identity['name']:.0%} of the answers, and the minimum is {least}")
    if identity.get("maker", 1.0) < MIN_NAME_SHARE:
        faults.append(f"it names its maker in {identity['maker']:.0%} of the answers, and the minimum is {least}")
    if identity["unasked"] > MAX_UNASKED_SHARE:
        most = f"{MAX_UNASKED_SHARE:.0%}"
        faults.append(
            f"it says its name unasked in {identity['unasked']:.1%} of the replies, and the maximum is {most}"
        )
    for name, nats in after.nats.items():
        rise = nats - before.nats[name]
        if rise > max_loss:
            faults.append(f"the loss on {name} rose by {rise:.3f} nats/unit, and the maximum is {max_loss}")
    if before.choice - after.choice > MAX_APTNESS_LOSS:
        faults.append(
            f"it chooses the true reply among ten in {after.choice:.0%} of the cases, before the training in"
            f" {before.choice:.0%}"
        )
    return faults


def least_room(identity: dict[str, Any], before: Knowledge, after: Knowledge, max_loss: float) -> float:
    """Return the distance to the nearest limit as a share of what that limit allows; negative if a limit is exceeded."""
    allowed = 1 - MIN_NAME_SHARE
    rooms = [(identity.get(about, 1.0) - MIN_NAME_SHARE) / allowed for about in ("name", "maker")]
    rooms.append(1 - identity["unasked"] / MAX_UNASKED_SHARE)
    rooms += [1 - (nats - before.nats[name]) / max(max_loss, 1e-3) for name, nats in after.nats.items()]
    return min(rooms)
