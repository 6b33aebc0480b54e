"""Interpolation between two replies in the space of a Gaussian latent variable.

Replies are decoded greedily at evenly spaced points on the line between the z of two variants of a reply
(`chatbot.chat.variants`), in coordinates in which the prior is the standard normal. If the space is well filled, each
step leads away from the first reply and towards the second one, and the replies in between are as fluent as those at
the ends.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from chatbot.chat.bot import Chatbot
from chatbot.chat.variants import MAX_COORDINATE, latent_of
from chatbot.evaluation.intervals import ratio
from chatbot.model.latent.gaussian import directions
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import count_units

STEPS = 5
"""Points on a line, with its ends."""

SPREAD = 1.5
"""Factor of the noise of the variants at the ends; with a smaller one, most ends give the same greedy reply."""


def line_between(bot: Chatbot, turns: Sequence[str], seed: int) -> list[str]:
    """Return the replies at `STEPS` points on the line between the z of variants 1 and 2 of a seed, at `SPREAD`."""
    latent = latent_of(bot)
    assert latent is not None
    ends = (SPREAD * directions(seed, 2, latent.size)).clamp(-MAX_COORDINATE, MAX_COORDINATE)
    shares = np.linspace(0, 1, STEPS).tolist()
    return [bot.reply(turns, 0, method="greedy", point=ends[0].lerp(ends[1], share).tolist()) for share in shares]


def rank_correlation(values: Sequence[float]) -> float:
    """Return Spearman's correlation of values with their positions; 0 for equal values. Ties get their mean rank."""
    array = np.asarray(values)
    ranks = np.array([(array < value).sum() + ((array == value).sum() - 1) / 2 for value in array])
    if ranks.std() == 0:
        return 0.0
    return float(np.corrcoef(ranks, np.arange(len(array)))[0, 1])


def interpolation_report(
    bot: Chatbot, base: Chatbot, contexts: Sequence[Sequence[str]], seed: int = 0
) -> dict[str, Any]:
    """Return measures of the lines between variants 1 and 2 of the reply to each context; see `line_between`.

    Lines whose two ends give the same reply are counted and left out: they have no direction.

    Args:
        bot: Bot with a Gaussian latent variable.
        base: Bot whose model scores the replies.
        contexts: Histories that end with a message.
        seed: Seed of the first context; each context has a different seed.

    Returns:
        `lines`: number of lines with different ends; `correlation`: mean rank correlation of the position with the
        distance (1 - WRD likeness) to the first end and to the nearness of the second one; `monotone`: share of the
        lines on which neither ever falls; `replies`: mean number of different replies on a line; `ends` and `between`:
        nats/unit under the base model; `bump`: their difference. Intervals: 95 %, bootstrap over the lines.
    """
    ranker = bot.ranker(bot.settings)
    correlations, monotone, distinct, ends, between = [], [], [], [], []
    for number, turns in enumerate(contexts):
        texts = line_between(bot, turns, seed + 1000 * number)
        if texts[0] == texts[-1]:
            continue
        ids = [bot.tokenizer.encode(text) for text in texts]
        away = [1 - ranker.likeness(part, ids[0]) for part in ids]
        near = [ranker.likeness(part, ids[-1]) for part in ids]
        correlations.append((rank_correlation(away) + rank_correlation(near)) / 2)
        monotone.append(all(b >= a - 1e-6 for values in (away, near) for a, b in pairwise(values)))
        distinct.append(len(set(texts)))
        before = [base.tokenizer.encode(turn) for turn in turns]
        scored = [turn[-1] for turn in score_turns(base.model, base.layout, [[*before, part] for part in ids])]
        units = [count_units([text]) for text in texts]
        ends.append((scored[0] + scored[-1], units[0] + units[-1]))
        between.append((sum(scored[1:-1]), sum(units[1:-1])))
    if len(correlations) < 2:
        return {"lines": len(correlations)}
    rates = [a / b - c / d for (a, b), (c, d) in zip(between, ends, strict=True)]
    return {
        "lines": len(correlations),
        "lines_with_equal_ends": len(contexts) - len(correlations),
        "correlation": float(np.mean(correlations)),
        "correlation_interval": ratio(correlations),
        "monotone": float(np.mean(monotone)),
        "replies": float(np.mean(distinct)),
        "ends_nats_per_unit": sum(nats for nats, _ in ends) / sum(units for _, units in ends),
        "between_nats_per_unit": sum(nats for nats, _ in between) / sum(units for _, units in between),
        "bump": float(np.mean(rates)),
        "bump_interval": ratio(rates),
    }
