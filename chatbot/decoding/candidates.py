"""Candidates for the next token: bans, checks and rules of one step, the same for every decoding method."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from chatbot.decoding.rules.eos_floor import EosFloor, StopReason
from chatbot.decoding.rules.penalties import penalties
from chatbot.decoding.rules.repetition import repetition_rules
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.errors import XianliaoError


class GenerationError(XianliaoError):
    """A model whose output cannot be decoded."""


@dataclass(frozen=True)
class TokenScore:
    """Log-probability of a token of a reply, under the distribution of `Draft.log_prob`.

    Attributes:
        token_id: The token.
        log_prob: Its log p in nats, at most 0.
        best: (token id, log p) of the most likely tokens of this step, most likely first.
    """

    token_id: int
    log_prob: float
    best: tuple[tuple[int, float], ...]


@dataclass
class Draft:
    """An unfinished or finished reply.

    Attributes:
        token_ids: Tokens so far, without EOS.
        log_prob: Sum of log p, in nats, of the tokens and of an EOS that was not forced, under the model's distribution
            over the allowed tokens (no [PAD], no [CLS], no EOS before min_reply_tokens, no banned word, no unreadable
            character).
        stop_reason: Why the reply ended; None while it is unfinished.
        scores: The terms of `log_prob` that belong to `token_ids`, with the alternatives, if `top_logprobs` is on.
    """

    token_ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    stop_reason: StopReason | None = None
    scores: list[TokenScore] = field(default_factory=list)


@dataclass(frozen=True)
class Candidates:
    """Logits of the next tokens of B replies.

    Attributes:
        allowed: The model's logits `[B, V]`, -inf for tokens that are not allowed.
        ruled: Logits `[B, V]` after the rules against repetition, before temperature and floor.
        emitted: Number of tokens of each reply so far, without its thinking block, int64 `[B]`.
        floor: The EOS floor, or None if it does not change any row yet.
    """

    allowed: torch.Tensor
    ruled: torch.Tensor
    emitted: torch.Tensor
    floor: EosFloor | None

    @property
    def model_log_probs(self) -> torch.Tensor:
        """Log-probabilities `[B, V]` of the model's distribution over the allowed tokens."""
        return self.allowed.log_softmax(-1)


def next_candidates(
    logits: torch.Tensor,
    settings: ReplySettings,
    vocabulary: Vocabulary,
    replies: Sequence[Sequence[int]],
    earlier: Sequence[Sequence[Sequence[int]]],
) -> Candidates:
    """Return the candidates of one step after bans, checks and rules.

    Args:
        logits: The model's logits `[B, V]`; they are not changed.
        settings: Decoding settings of all rows.
        vocabulary: Properties of the tokens.
        replies: Token ids of each reply so far.
        earlier: Token ids of the last replies in each conversation, for the rules against repetition.

    Raises:
        GenerationError: The logits are NaN or +inf, or leave no token to choose.
    """
    end_id = vocabulary.end_id
    original, logits = logits, logits.float().clone()
    banned = torch.tensor(vocabulary.banned_ids, dtype=torch.int64, device=logits.device)
    logits.index_fill_(1, banned, -math.inf)
    thinking, whole = vocabulary.thinking if settings.thinks else None, replies
    if thinking is not None:
        replies = [thinking.segment(reply) for reply in whole]
    if settings.banned_words:
        vocabulary.ban(settings.banned_words).apply(logits, replies)
    if vocabulary.readable is not None:
        vocabulary.readable.apply(logits, replies)
    lengths = [len(reply) for reply in replies]
    if thinking is not None:
        thinking.apply(logits, original, whole, end_id, settings.thinking_tokens)
        lengths = [0 if thinking.is_thinking(reply) else len(part) for reply, part in zip(whole, replies, strict=True)]
    end = logits[:, end_id].clone()
    emitted = torch.tensor(lengths, device=logits.device)
    logits[:, end_id].masked_fill_(emitted < settings.min_reply_tokens, -math.inf)
    largest = logits.amax(-1)
    if (largest == -math.inf).any():  # banned words or unreadable characters leave no other token: allow EOS early
        logits[:, end_id] = torch.where(largest == -math.inf, end, logits[:, end_id])
        largest = logits.amax(-1)
    _check(largest.tolist())
    ruled = logits
    if rules := repetition_rules(settings, end_id):
        ruled = logits.clone()
        for rule in rules:
            rule.apply(ruled, replies, earlier)
        stuck = ruled.amax(-1) == -math.inf  # every token would repeat, and EOS is not allowed yet
        ruled[stuck] = logits[stuck]
    if (active := penalties(settings)) is not None:
        ruled = ruled.clone() if ruled is logits else ruled
        active.apply(ruled, replies)
    floor = settings.floor
    if floor is not None and int(emitted.max()) <= floor.start_tokens:
        floor = None
    return Candidates(logits, ruled, emitted, floor)


def _check(largest: list[float]) -> None:
    """Raise an error for logits that cannot be decoded. A row's maximum shows NaN, infinity or no allowed token."""
    if any(math.isnan(value) or value == math.inf for value in largest):
        raise GenerationError(
            "The model's output is not a number: the checkpoint is damaged or its training diverged. Use another one."
        )
    if -math.inf in largest:
        raise GenerationError(
            "The model leaves no token to choose: the checkpoint is damaged or its training diverged. Use another one."
        )
