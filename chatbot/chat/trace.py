"""Trace of a reply, token by token: the candidates with their probabilities, and the probability of the end."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from chatbot.chat.bot import Chatbot, Request
from chatbot.decoding.candidates import Candidates, Draft, next_candidates
from chatbot.decoding.rules.truncation import truncate
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError

MAX_SHOWN = 8
"""Maximum number of candidates that are listed; all are counted."""


@dataclass(frozen=True)
class TracedStep:
    """Choice of one token.

    Attributes:
        token: Text of the chosen token; empty for the end of the turn.
        probability: Probability of the chosen token; 1 if the hard limit or a search over whole replies chose it.
        kept: Most likely candidates after truncation, text and probability; the end is the empty text.
        count: Number of candidates after truncation.
        end: Probability of the end after rules and temperature, before floor and truncation.
        end_kept: Probability of the end after floor and truncation.
        floor: Least probability of the end by the floor.
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
    """Decode a reply, yielding None per step, then read it again and yield the candidates of every step.

    Both passes use the same state, rules and seed, so it is the reply of `Chatbot.respond`. For beam search and best of
    several candidates, the steps show the alternatives of the chosen reply.

    Raises:
        XianliaoError: The reply is a fixed text.
    """
    if request.fixed is not None:
        raise XianliaoError("This reply is a fixed text; the model did not choose its words.")
    draft = Draft()
    for draft in bot.drafts(request, *bot.read_prompt(request.prompt)):  # noqa: B007
        yield None
    batch, logits = bot.read_prompt(request.prompt)
    speaker = torch.tensor([request.prompt.reply_speaker], device=logits.device)
    tokens = [*draft.token_ids, bot.vocabulary.end_id]
    earlier = [request.answered.earlier_replies]
    for emitted, token in enumerate(tokens):
        candidates = next_candidates(logits, request.settings, bot.vocabulary, [tokens[:emitted]], earlier)
        is_last = emitted == len(tokens) - 1
        yield _step(bot, request.settings, candidates, token, draft.stop_reason == "limit" and is_last)
        if not is_last:
            logits = batch(torch.tensor([token], device=logits.device), speaker)


def _step(bot: Chatbot, settings: ReplySettings, candidates: Candidates, token: int, forced: bool) -> TracedStep:
    end_id = bot.vocabulary.end_id
    sampled = settings.method == "sample"
    heated = (candidates.ruled / (settings.temperature if sampled else 1)).log_softmax(-1)
    floor = candidates.floor
    floored = heated if floor is None else floor.apply(heated, candidates.emitted, end_id)
    shares = truncate(floored, settings, end_id).softmax(-1)[0]
    count = int((shares > 0).sum())
    kept = shares.topk(min(MAX_SHOWN, count))
    texts = ["" if i == end_id else bot.tokenizer.decode([i]) for i in (token, *kept.indices.tolist())]
    return TracedStep(
        token=texts[0],
        probability=1.0 if forced or not sampled else float(shares[token]),
        kept=tuple(zip(texts[1:], kept.values.tolist(), strict=True)),
        count=count,
        end=float(heated[0, end_id].exp()),
        end_kept=1.0 if forced else float(shares[end_id]),
        floor=0.0 if floor is None else float(floor.mass(candidates.emitted)[0]),
    )
