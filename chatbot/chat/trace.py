"""How a reply was chosen, token by token: what the rules kept, with which probability, and where the end stood."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from chatbot.chat.bot import Chatbot, Request
from chatbot.decoding.candidates import Candidates, next_candidates
from chatbot.decoding.rules.truncation import truncation
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError

MOST_SHOWN = 8
"""Candidates that are named; all are counted."""


@dataclass(frozen=True)
class TracedStep:
    """One choice.

    Attributes:
        token: Text of the token that was chosen; empty for the end of the turn.
        probability: With which it was drawn; 1 where the hard limit or a search over whole replies took it.
        kept: The most likely candidates that were kept, text and probability; the end is the empty text.
        count: How many were kept.
        end: Probability of the end after rules and temperature, before the floor and the truncation.
        end_kept: The same as it was drawn.
        floor: What the floor asks of the end there.
    """

    token: str
    probability: float
    kept: tuple[tuple[str, float], ...]
    count: int
    end: float
    end_kept: float
    floor: float


@torch.inference_mode()
def trace(bot: Chatbot, request: Request) -> Iterator[TracedStep | None]:
    """Decodes a reply (None for each step of that), then goes through it again and says what was there to choose from.

    Both use the same state, rules and seed, so it is the reply that `Chatbot.respond` gives. For beam search and best of
    several it shows what the reply that won had to choose from.

    Raises:
        XianliaoError: The reply is a fixed text that no model made.
    """
    if request.fixed is not None:
        raise XianliaoError("This reply was written beforehand; the model chose nothing.")
    for draft in bot.drafts(request, *bot.steps_after(request.prompt)):  # noqa: B007
        yield None
    steps, logits = bot.steps_after(request.prompt)
    speaker = torch.tensor([request.prompt.reply_speaker], device=logits.device)
    tokens = [*draft.token_ids, bot.vocabulary.end_id]
    for place, token in enumerate(tokens):
        found = next_candidates(logits, request.settings, bot.vocabulary, [tokens[:place]], [request.answered.own])
        yield _step(bot, request.settings, found, token, draft.stop_reason == "limit" and place == len(tokens) - 1)
        if place < len(tokens) - 1:
            logits = steps(torch.tensor([token], device=logits.device), speaker)


def _step(bot: Chatbot, settings: ReplySettings, found: Candidates, token: int, forced: bool) -> TracedStep:
    end_id = bot.vocabulary.end_id
    sampled = settings.method == "sample"
    heated = (found.ruled / (settings.temperature if sampled else 1)).log_softmax(-1)
    floored = heated if found.floor is None else found.floor.apply(heated, found.emitted, end_id)
    shares = truncation(settings, end_id)(None, floored).softmax(-1)[0]
    kept = shares.topk(min(MOST_SHOWN, int((shares > 0).sum())))
    texts = [bot.tokenizer.decode([each]) if each != end_id else "" for each in (token, *kept.indices.tolist())]
    floor = 0.0
    if settings.floor is not None:
        late = max(0, int(found.emitted[0]) - settings.floor.start_tokens)
        floor = 1 - 0.5 ** (late / settings.floor.delta_tokens)
    return TracedStep(
        token=texts[0],
        probability=1.0 if forced or not sampled else float(shares[token]),
        kept=tuple(zip(texts[1:], kept.values.tolist(), strict=True)),
        count=int((shares > 0).sum()),
        end=float(heated[0, end_id].exp()),
        end_kept=1.0 if forced else float(shares[end_id]),
        floor=floor,
    )
