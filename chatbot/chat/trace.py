"""Trace of a reply, token by token: the candidates and the end of turn, with their probabilities."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from chatbot.chat.bot import Chatbot, Request
from chatbot.chat.variants import read_request
from chatbot.decoding.candidates import Candidates, Draft
from chatbot.decoding.loop import ForcedReply, run
from chatbot.decoding.rules.truncation import drawn_from
from chatbot.errors import XianliaoError

MAX_SHOWN = 8
"""Maximum number of candidates that are listed; all are counted."""


@dataclass(frozen=True)
class TracedStep:
    """Choice of one token.

    Attributes:
        token: Text of the chosen token; empty for the end of the turn.
        probability: Probability of the chosen token; 1 if the hard limit or a search over whole replies chose it.
        likeliest: Text and probability of the most likely candidates after truncation (top-k, top-p …); the text of the
            end of turn is empty.
        count: Number of candidates after truncation.
        end: Probability of the end of turn after rules and temperature, before EOS floor and truncation.
        end_kept: Probability of the end of turn after EOS floor and truncation.
        floor: Lower bound that the EOS floor sets for the probability of the end of turn.
    """

    token: str
    probability: float
    likeliest: tuple[tuple[str, float], ...]
    count: int
    end: float
    end_kept: float
    floor: float


def check_traceable(request: Request) -> None:
    """Check that the model, not a fixed text, answers a request.

    Raises:
        XianliaoError: The reply is a fixed text.
    """
    if request.fixed is not None:
        raise XianliaoError("This reply is a fixed text; the model did not choose its words.")


@torch.inference_mode()
def trace(bot: Chatbot, request: Request) -> Iterator[TracedStep | None]:
    """Decode a reply, yielding None per step, then read it again and yield the candidates of every step.

    Both passes use the same state, rules and seed, so the reply is the one of `Chatbot.respond`. For beam search
    and for the best of several candidates, the steps show the alternatives to the tokens of the chosen reply.

    Raises:
        XianliaoError: The reply is a fixed text.
    """
    check_traceable(request)
    draft = Draft()
    for draft in bot.drafts(request, *read_request(bot, request)):  # noqa: B007
        yield None
    batch, logits = read_request(bot, request)
    watched: list[Candidates] = []
    forced = forced_reply(bot, request, draft, watched.append)
    for position, _ in enumerate(run(batch, logits, [forced], bot.vocabulary)):
        yield traced_step(bot, request, draft, position, watched.pop())


def forced_reply(bot: Chatbot, request: Request, draft: Draft, watch: Callable[[Candidates], None]) -> ForcedReply:
    """Return a finished reply to be read again; `watch` gets the candidates of every step."""
    tokens, earlier = [*draft.token_ids, bot.vocabulary.end_id], request.answered.earlier_replies
    speaker = request.prompt.reply_speaker
    return ForcedReply(
        tokens, (request.settings,), lambda index, candidates, replies: watch(candidates), earlier, speaker
    )


def traced_step(bot: Chatbot, request: Request, draft: Draft, position: int, candidates: Candidates) -> TracedStep:
    """Return the step that chose token `position` of a finished reply; the last position is the end of turn."""
    settings, end_id = request.settings, bot.vocabulary.end_id
    token = [*draft.token_ids, end_id][position]
    forced = draft.stop_reason == "limit" and position == len(draft.token_ids)
    sampled = settings.method == "sample"
    heated = (candidates.ruled / (settings.temperature if sampled else 1)).log_softmax(-1)
    floor = candidates.floor
    floored = heated if floor is None else floor.apply(heated, candidates.emitted, end_id)
    shares = drawn_from(floored, settings, end_id)[0]
    count = int((shares > 0).sum())
    likeliest = shares.topk(min(MAX_SHOWN, count))
    texts = ["" if i == end_id else bot.tokenizer.decode([i]) for i in (token, *likeliest.indices.tolist())]
    return TracedStep(
        token=texts[0],
        probability=1.0 if forced or not sampled else float(shares[token]),
        likeliest=tuple(zip(texts[1:], likeliest.values.tolist(), strict=True)),
        count=count,
        end=float(heated[0, end_id].exp()),
        end_kept=1.0 if forced else float(shares[end_id]),
        floor=0.0 if floor is None else float(floor.mass(candidates.emitted)[0]),
    )
