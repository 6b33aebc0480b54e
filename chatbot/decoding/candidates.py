"""What may come next in a reply: the bans, checks and rules of one step, the same for every way to choose."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from chatbot.decoding.rules.eos_floor import EosFloor, StopReason
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.errors import XianliaoError


class GenerationError(XianliaoError):
    """A model whose output cannot be decoded."""


@dataclass
class Draft:
    """A reply in the making.

    Attributes:
        token_ids: Tokens so far, EOS not included.
        log_prob: Sum of log p, in nats, of the tokens and of an EOS that was not forced, under the model's own
            distribution over the tokens allowed there (no [PAD], no [CLS], no EOS before min_reply_tokens, no banned word).
        stop_reason: None while the reply goes on.
    """

    token_ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    stop_reason: StopReason | None = None


@dataclass(frozen=True)
class Candidates:
    """What may come next, for each of B replies; all `[B, V]`.

    Attributes:
        allowed: The model's logits, -inf for what is not allowed.
        ruled: Logits after the rules against repetition, before temperature and floor.
        emitted: Tokens that each reply has, int64 `[B]`.
        floor: The floor where it is at work in some reply, else None.
    """

    allowed: torch.Tensor
    ruled: torch.Tensor
    emitted: torch.Tensor
    floor: EosFloor | None

    @property
    def own(self) -> torch.Tensor:
        """Log-probabilities of the model's own distribution over the tokens that are allowed."""
        return self.allowed.log_softmax(-1)


def next_candidates(
    logits: torch.Tensor,
    settings: ReplySettings,
    vocabulary: Vocabulary,
    replies: Sequence[Sequence[int]],
    said: Sequence[Sequence[Sequence[int]]],
) -> Candidates:
    """Bans, checks and rules of one step.

    Args:
        logits: `[B, V]`; left as they are.
        settings: How to decode.
        vocabulary: The tokens.
        replies: Tokens of each reply so far.
        said: Token ids of the last replies in each conversation.

    Raises:
        GenerationError: The logits are NaN or +inf, or leave no token to choose.
    """
    end_id = vocabulary.end_id
    logits = logits.float().clone()
    banned = torch.tensor(vocabulary.banned_ids, dtype=torch.int64, device=logits.device)
    logits.index_fill_(1, banned, -math.inf)
    if settings.banned_words:
        vocabulary.ban(settings.banned_words).apply(logits, replies)
    end = logits[:, end_id].clone()
    emitted = torch.tensor([len(reply) for reply in replies], device=logits.device)
    logits[:, end_id].masked_fill_(emitted < settings.min_reply_tokens, -math.inf)
    largest = logits.amax(-1)
    if settings.banned_words and (largest == -math.inf).any():  # no word is left that may be said: end early
        logits[:, end_id] = torch.where(largest == -math.inf, end, logits[:, end_id])
        largest = logits.amax(-1)
    _check(largest.tolist())
    ruled = logits
    if (repetition := settings.repetition(end_id)) is not None:
        ruled = logits.clone()
        repetition.apply(ruled, replies, said)
        stuck = ruled.amax(-1) == -math.inf  # all has been said, and it is too early to end
        ruled[stuck] = logits[stuck]
    floor = settings.floor
    if floor is not None and int(emitted.max()) <= floor.start_tokens:
        floor = None
    return Candidates(logits, ruled, emitted, floor)


def _check(largest: list[float]) -> None:
    """Refuses what cannot be decoded; the largest logit of a row shows a NaN, an infinity and that nothing is left."""
    if any(math.isnan(value) or value == math.inf for value in largest):
        raise GenerationError("The model's output is not a number; the checkpoint is damaged or its training diverged.")
    if -math.inf in largest:
        raise GenerationError(
            "The model leaves no token to choose; the checkpoint is damaged or its training diverged."
        )
