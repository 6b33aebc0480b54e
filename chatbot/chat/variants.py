"""Variants (换个说法): other ways to say a reply. Variant k depends on history, settings, seed, k and spread only.

Variant 0 is the reply itself. If the model has a latent variable z (`chatbot.model.latent`), variant k is decoded with
z_k = mu_p + spread sigma_p * e_k, where the direction e_k is orthogonal to the directions of the earlier variants.

With a Gaussian z, a reply can also be decoded at a point of the message's unit ball: z = mu_p + sigma_p * point.

Other models choose variants among candidates that are sampled from the same seed, in blocks: each block of `POOL`
candidates gives `PER_BLOCK` variants. A third of a block is sampled at the temperature of the settings and the rest at
higher temperatures, because a bot that is sure of its reply would only repeat it. The better half of the new
candidates, by the score of `chatbot.decoding.rerank`, is sorted by the distance to the nearest variant shown so far.
The spread selects a position in this order: 0 is the nearest candidate, 1 and more the farthest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import inf
from typing import TYPE_CHECKING

import torch

from chatbot.decoding.batch import DialogueBatch, start_batch
from chatbot.decoding.candidates import Draft
from chatbot.decoding.rerank import SAME_LIKENESS, Ranker
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import ReplySettingsError, shown
from chatbot.model.latent.layers import ReplyLatent

if TYPE_CHECKING:
    from chatbot.chat.bot import Chatbot
    from chatbot.chat.request import Request

POOL = 12
"""Candidates per block."""

PER_BLOCK = 2
"""Variants that are chosen from a block."""

HEATS = (1.0, 1.25, 1.5)
"""Factors of the temperature at spread 1, one for each third of a block."""

MAX_VARIATION = 8
"""Largest variant number; the limit bounds the number of rows that a request takes in a batch."""

MAX_SPREAD = 2.0

MAX_COORDINATE = 4.0
"""Largest absolute value of a coordinate of a point, in standard deviations of the prior."""


def check_variation(variation: int, spread: float, settings: ReplySettings) -> None:
    """Check `variation`, the number of a variant, and `spread`, its distance from the reply.

    Raises:
        ReplySettingsError: A value is out of range, or the settings do not sample.
    """
    if type(variation) is not int or not 0 <= variation <= MAX_VARIATION:
        raise ReplySettingsError(f"variation must be a whole number from 0 to {MAX_VARIATION}, got {shown(variation)}.")
    if isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 0 <= spread <= MAX_SPREAD:
        raise ReplySettingsError(f"spread must be a number from 0 to {MAX_SPREAD}, got {shown(spread)}.")
    if variation and settings.thinks:
        raise ReplySettingsError(f"Variants have no thinking block: remove variation or thinking {settings.thinking}.")
    if variation and settings.method != "sample":
        raise ReplySettingsError(f"Variants are sampled: remove variation or method {settings.method}.")


def check_point(
    point: Sequence[float] | None, variation: int, latent: ReplyLatent | None, settings: ReplySettings
) -> tuple[float, ...]:
    """Return a point of the unit ball as a tuple, empty for None.

    Raises:
        ReplySettingsError: The model has no Gaussian latent variable, the point is not `latent.size` numbers from
            -`MAX_COORDINATE` to `MAX_COORDINATE`, or it cannot be combined with the other settings.
    """
    if point is None:
        return ()
    if latent is None or latent.is_discrete:
        raise ReplySettingsError("A point needs a model with a Gaussian latent variable: remove point.")
    numbers = tuple(point) if isinstance(point, (list, tuple)) else ()
    are_numbers = all(isinstance(number, (int, float)) and not isinstance(number, bool) for number in numbers)
    if len(numbers) != latent.size or not are_numbers or not all(abs(n) <= MAX_COORDINATE for n in numbers):
        raise ReplySettingsError(
            f"point must be {latent.size} numbers from {-MAX_COORDINATE} to {MAX_COORDINATE}, got {shown(point)}."
        )
    if variation or settings.thinks or settings.method == "beam":
        raise ReplySettingsError("A reply at a point is one reply: remove variation, thinking and method beam.")
    return tuple(map(float, numbers))


def pool_size(variation: int) -> int:
    """Return among how many candidates variant `variation` is chosen if the model has no latent variable."""
    return POOL * (1 + (variation - 1) // PER_BLOCK)


def candidate_settings(request: Request) -> list[ReplySettings]:
    """Return the settings of each candidate of a request; further candidates may have a higher temperature."""
    settings = [request.settings] * request.candidates
    for index in range(request.settings.candidates if request.is_chosen else len(settings), len(settings)):
        heat = 1 + request.spread * (HEATS[index % POOL * len(HEATS) // POOL] - 1)
        if heat > 1:
            settings[index] = request.settings.with_changes(temperature=min(100.0, heat * request.settings.temperature))
    return settings


def choose_variant(ranker: Ranker, request: Request, drafts: Sequence[Draft]) -> Draft:
    """Choose the requested variant for a model without a latent variable.

    The earlier variants are chosen again first, so the result does not depend on other requests.

    Args:
        ranker: Ranker of the checkpoint.
        request: The request; its `variation` is at least 1.
        drafts: The `request.candidates` finished candidates.
    """
    settings, history = request.settings, [request.answered]
    first = drafts[: settings.candidates]
    variants = [first[ranker.best(history, [first], settings)[0]] if len(first) > 1 else first[0]]
    scores: dict[int, float] = {}  # by index, of the distinct candidates of the block
    likeness: dict[int, float] = {}  # by index, to the nearest variant so far
    for number in range(request.variation):
        block = drafts[POOL * (number // PER_BLOCK) :][:POOL]
        compared = variants[-1:]
        if number % PER_BLOCK == 0:
            ((indices, values),) = ranker.scored(history, [block], settings)
            scores, compared = dict(zip(indices, values, strict=True)), variants
            likeness = dict.fromkeys(scores, -inf)
        for index in likeness:
            alike = max(ranker.likeness(block[index].token_ids, variant.token_ids) for variant in compared)
            likeness[index] = max(likeness[index], alike)
        new = [index for index in likeness if likeness[index] < SAME_LIKENESS]
        good = sorted(new, key=lambda index: (-scores[index], index))[: (len(new) + 1) // 2]
        order = sorted(good, key=lambda index: (-likeness[index], index))  # the nearest first
        order = order or [min(likeness, key=lambda index: (likeness[index], index))]
        variants.append(block[order[round(min(1.0, request.spread) * (len(order) - 1))]])
    return variants[-1]


def latent_of(bot: Chatbot) -> ReplyLatent | None:
    """Return the latent of a bot's model, or None."""
    return bot.model.latent


@torch.inference_mode()
def z_of(latent: ReplyLatent, request: Request, hidden: torch.Tensor) -> torch.Tensor:
    """Return z `[Z]` of a request with a z, from the hidden state `[D]` at the end of its message."""
    if request.point:
        return latent.at(hidden, request.point)
    return latent.variant(hidden, request.seed, request.variation, request.spread)


@torch.inference_mode()
def read_request(bot: Chatbot, request: Request) -> tuple[DialogueBatch, torch.Tensor]:
    """Read a request's prompt like `Chatbot.read_prompt`; if its reply has a z, the last token with z."""
    latent = latent_of(bot)
    if latent is None or not request.has_z:
        return bot.read_prompt(request.prompt)
    *before, (tokens, speaker) = request.prompt.pieces
    batch = start_batch(bot.model)
    if before:
        batch, _ = bot.read_prompt(replace(request.prompt, pieces=tuple(before)))
    batch.read([tokens[:-1]], [[speaker] * (len(tokens) - 1)])
    plain = batch.clone()
    plain.read([tokens[-1:]], [[speaker]])
    batch.set_latent(0, z_of(latent, request, plain.hidden[0]))
    return batch, batch.read([tokens[-1:]], [[speaker]])
