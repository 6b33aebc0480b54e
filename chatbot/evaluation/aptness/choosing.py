"""Measures of sense without a judge: the model must pick the true reply, or the true history, among others."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import Any

from chatbot.chat.bot import Chatbot
from chatbot.evaluation import intervals
from chatbot.evaluation.answering import Context
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import clean_turn

CHOICES = 10
"""Number of replies or histories to choose from; by chance the choice is right in one case of ten."""

HISTORY_TURNS = 8
"""Number of turns at the end of a context that the model reads."""

Advance = Callable[[int], object]
"""Function that is called with the number of dialogues scored since its last call, for a progress bar."""

EARLIER_TURNS = 4
"""Minimum number of turns before the message in `history_hits`: the message is turn 5 or later, the reply one more."""


def scored_by_choices(contexts: Sequence[Context]) -> int:
    """Return the number of dialogues that `reply_hits` and `history_hits` score in all, the total of `advance`."""
    long = sum(len(context.turns) > EARLIER_TURNS for context in contexts)
    replies, histories = (CHOICES * count if count >= CHOICES else 0 for count in (len(contexts), long))
    return replies + histories


def reply_hits(
    bot: Chatbot, contexts: Sequence[Context], seed: int = 0, advance: Advance = lambda count: None
) -> dict[str, Any] | None:
    """Return how often the true reply has the highest log p(r | c) - log p(r) among `CHOICES` replies.

    The difference is the pointwise mutual information of context and reply. A reply that fits every context gains
    nothing from it.

    Returns:
        `hits` and `interval` of the share, and `contexts`; None with fewer than `CHOICES` contexts.
    """
    if len(contexts) < CHOICES:
        return None
    histories = [_encode(bot, context.turns[-HISTORY_TURNS:]) for context in contexts]
    replies = [bot.tokenizer.encode(context.reference) for context in contexts]
    choices = [[index, *_others(len(contexts), index, seed)] for index in range(len(contexts))]
    dialogues = [[*history, replies[i]] for history, row in zip(histories, choices, strict=True) for i in row]
    firsts = [max(0, len(contexts[row[0]].turns) - HISTORY_TURNS) for row in choices for _ in row]
    scored = score_turns(bot.model, bot.layout, dialogues, first_turns=firsts, advance=advance)
    given = iter([nats[-1] for nats in scored])
    alone: list[list[float]] = []  # by speaker of the reply: nats of every reply without a context
    for speaker in (0, 1):
        scored = score_turns(
            bot.model, bot.layout, [[reply] for reply in replies], first_turns=[speaker] * len(replies)
        )
        alone.append([nats[-1] for nats in scored])
    hits = []
    for context, row in zip(contexts, choices, strict=True):
        gains = [alone[len(context.turns) % 2][i] - next(given) for i in row]
        hits.append(max(range(CHOICES), key=gains.__getitem__) == 0)
    return _share(hits)


def history_hits(
    bot: Chatbot, contexts: Sequence[Context], seed: int = 0, advance: Advance = lambda count: None
) -> dict[str, Any] | None:
    """Return how often a reply (turn 6 or later) is likelier after its own history than after nine other histories.

    The message before the reply is kept; only the turns before that message are replaced. A model that looks at the
    message alone is right in one case of ten.

    Returns:
        `hits` and `interval` of the share, and `contexts`; None with fewer than `CHOICES` contexts that are long
        enough.
    """
    long = [context for context in contexts if len(context.turns) > EARLIER_TURNS]
    if len(long) < CHOICES:
        return None
    earlier = [_encode(bot, context.turns[:-1][-HISTORY_TURNS:]) for context in long]
    endings = [_encode(bot, [context.turns[-1], context.reference]) for context in long]
    dialogues, firsts = [], []
    for index, ending in enumerate(endings):
        for other in (index, *_others(len(long), index, seed)):
            dialogues.append([*earlier[other], *ending])
            firsts.append((len(long[index].turns) - 1 - len(earlier[other])) % 2)  # the reply keeps its speaker
    scored = score_turns(bot.model, bot.layout, dialogues, first_turns=firsts, advance=advance)
    nats = iter([turns[-1] for turns in scored])
    hits = []
    for _ in long:
        costs = [next(nats) for _ in range(CHOICES)]
        hits.append(costs[0] < min(costs[1:]))
    return _share(hits)


def _encode(bot: Chatbot, turns: Sequence[str]) -> list[list[int]]:
    return [bot.tokenizer.encode(clean_turn(turn)) for turn in turns]


def _others(count: int, index: int, seed: int) -> list[int]:
    """Return `CHOICES` - 1 distinct indices below `count` other than `index`."""
    drawn = random.Random(f"{seed}/{index}").sample(range(count - 1), CHOICES - 1)
    return [other + (other >= index) for other in drawn]


def _share(hits: Sequence[bool]) -> dict[str, Any]:
    interval = intervals.share(sum(hits), len(hits))
    return {"hits": sum(hits) / len(hits), "interval": list(interval), "contexts": len(hits)}
