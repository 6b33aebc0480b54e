"""Other ways to say a reply (换个说法): variant k of a reply, a function of history, settings, seed, k and spread.

Variant 0 is the reply itself. With a latent (`chatbot.model.latent`) variant k is decoded with
z_k = mu_p + spread sigma_p * e_k, e_k orthogonal to those of the earlier variants.

Without a latent, variants are chosen among candidates of the same seed, in blocks of `POOL` candidates: the better half of a
block by the score of `chatbot.decoding.rerank` is ordered by the distance to the nearest variant that was shown, and spread
is the place in that order, 0 the nearest and 1 the farthest. Each block gives `PER_BLOCK` variants.
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

PER_BLOCK = 3
"""Variants that are chosen from a block."""

MAX_VARIATION = 9
"""Largest number of a variant; it bounds the rows that a request takes in a batch."""

MAX_SPREAD = 2.0


def check_variation(variation: int, spread: float, settings: ReplySettings) -> None:
    """Check the number and the spread of a variant.

    Raises:
        ReplySettingsError: A value is out of range, or the settings do not sample.
    """
    if type(variation) is not int or not 0 <= variation <= MAX_VARIATION:
        raise ReplySettingsError(
            f"variation must be a whole number from 0 to {MAX_VARIATION}, got {shown(variation)}."
        )
    if isinstance(spread, bool) or not isinstance(spread, (int, float)) or not 0 <= spread <= MAX_SPREAD:
        raise ReplySettingsError(f"spread must be a number from 0 to {MAX_SPREAD}, got {shown(spread)}.")
    if variation and settings.method != "sample":
        raise ReplySettingsError(f"Variants are sampled: remove variation or method {settings.method}.")


def pool_size(variation: int) -> int:
    """Return the number of candidates that variant `variation` without a latent is chosen from."""
    return POOL * (1 + (variation - 1) // PER_BLOCK)


def choose_variant(ranker: Ranker, request: Request, drafts: Sequence[Draft]) -> Draft:
    """Return a variant of a model without a latent.

    The earlier variants are chosen again, so the result depends on no other request.

    Args:
        ranker: Ranker of the checkpoint.
        request: The request; its `variation` is at least 1.
        drafts: Its finished candidates, `request.candidates` of them.
    """
    settings, history = request.settings, [request.answered]
    own = drafts[: settings.candidates]
    current = own[ranker.best(history, [own], settings)[0]] if len(own) > 1 else own[0]
    variants = [current]
    likeness: dict[int, float] = {}  # of the candidates of the block to the nearest variant so far
    for number in range(request.variation):
        block = drafts[POOL * (number // PER_BLOCK) :][:POOL]
        if number % PER_BLOCK == 0:
            good, compared = _better_half(ranker, request, block), variants
            likeness = dict.fromkeys(good, -inf)
        else:
            compared = variants[-1:]
        for index in likeness:
            alike = max(ranker.likeness(block[index].token_ids, variant.token_ids) for variant in compared)
            likeness[index] = max(likeness[index], alike)
        order = sorted(likeness, key=lambda index: (-likeness[index], index))  # the nearest first
        new = [index for index in order if likeness[index] < SAME_LIKENESS] or order[-1:]
        variants.append(block[new[round(min(1.0, request.spread) * (len(new) - 1))]])
    return variants[-1]


def _better_half(ranker: Ranker, request: Request, block: Sequence[Draft]) -> list[int]:
    """Return the indices of the better half of different candidates, by score, and at least `PER_BLOCK` if there are."""
    ((kept, scores),) = ranker.scored([request.answered], [block], request.settings)
    order = sorted(zip(kept, scores, strict=True), key=lambda pair: (-pair[1], pair[0]))
    return [index for index, _ in order[: max(PER_BLOCK, (len(order) + 1) // 2)]]


def latent_of(bot: Chatbot) -> ReplyLatent | None:
    """Return the latent of a bot's model, or None."""
    return getattr(bot.model, "latent", None)


@torch.inference_mode()
def z_of(latent: ReplyLatent, request: Request, hidden: torch.Tensor) -> torch.Tensor:
    """Return z `[Z]` of a request for a variant, from the hidden state `[D]` at the end of its message."""
    return latent.variant(hidden, request.seed, request.variation, request.spread)


@torch.inference_mode()
def read_request(bot: Chatbot, request: Request) -> tuple[DialogueBatch, torch.Tensor]:
    """Read the prompt of a request as `Chatbot.read_prompt` does, its last token with z if it asks for a variant."""
    latent = latent_of(bot)
    if latent is None or not request.variation:
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
