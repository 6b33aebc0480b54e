"""Request for a reply, its seeds and history, and the reply."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from chatbot.decoding.rerank import Answered
from chatbot.decoding.rules.eos_floor import StopReason
from chatbot.decoding.rules.repetition import last_replies
from chatbot.decoding.settings import ReplySettings
from chatbot.safety import Fixed
from chatbot.text.dialogue import Prompt

MAX_SEED = 2**31 - 1
"""Largest seed."""


@dataclass(frozen=True)
class Reply:
    """A finished or unfinished reply.

    Attributes:
        text: Text without unfinished characters.
        token_ids: Tokens before the end of turn.
        stop_reason: See `chatbot.decoding.rules.eos_floor.StopReason`.
        log_prob: See `chatbot.decoding.candidates.Draft`.
        seed: Seed that gives the same reply again for the same history and settings.
        seconds: Time from the call to the last token.
    """

    text: str
    token_ids: tuple[int, ...]
    stop_reason: StopReason
    log_prob: float
    seed: int
    seconds: float

    @property
    def tokens_per_second(self) -> float:
        """Tokens per second, with the end of turn."""
        return (len(self.token_ids) + 1) / max(self.seconds, 1e-9)


@dataclass(frozen=True)
class Request:
    """A checked request for a reply.

    Attributes:
        prompt: The history as the model sees it; empty if the reply is a fixed text.
        answered: The history as token ids.
        settings: Decoding settings.
        seed: Seed of the random numbers.
        started: Time of the request, by `time.perf_counter`.
        fixed: Text to deliver instead of a reply of the model, or None.
    """

    prompt: Prompt
    answered: Answered
    settings: ReplySettings
    seed: int
    started: float
    fixed: Fixed | None = None


def answered_by(ids: Sequence[Sequence[int]]) -> Answered:
    """Return a history with the bot's last replies.

    Args:
        ids: Token ids of the turns, oldest first; the last is the message.
    """
    return Answered(ids, last_replies(ids))


def candidate_seeds(seed: int, count: int) -> list[int]:
    """Return the seeds of the candidates of a reply; the first is `seed`, so a single candidate is the plain reply."""
    return [seed, *(random.Random(f"{seed}/{number}").randrange(MAX_SEED) for number in range(1, count))]
