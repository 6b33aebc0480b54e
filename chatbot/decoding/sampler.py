"""Sampler: chooses the next token of each reply, by sampling or greedily."""

from __future__ import annotations

import math
import random
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np
import torch

from chatbot.decoding.candidates import Candidates, Draft, TokenScore, next_candidates
from chatbot.decoding.native_draw import can_draw, draw
from chatbot.decoding.rules.truncation import truncate
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary


@dataclass(eq=False)
class SampledReply:
    """A reply that is sampled or chosen greedily; a `chatbot.decoding.loop.Search` of one row.

    Attributes:
        settings: Decoding settings.
        random: Random number generator of this reply.
        earlier: Token ids of the last replies in its conversation.
        speaker: Speaker id of the reply.
        draft: The reply so far.
    """

    settings: ReplySettings
    random: random.Random
    earlier: Sequence[Sequence[int]] = ()
    speaker: int = 1
    draft: Draft = field(default_factory=Draft)
    rows: ClassVar[int] = 1

    @property
    def group(self) -> Hashable:
        """Replies with equal groups are advanced together."""
        return self.settings

    @staticmethod
    def advance(
        logits: torch.Tensor, searches: Sequence[SampledReply], vocabulary: Vocabulary
    ) -> list[list[tuple[int, int]]]:
        """Choose the next token of replies with equal settings; see `chatbot.decoding.loop.Search`.

        Each reply gets the token that it would get alone.
        """
        tokens = choose(logits, searches, vocabulary)
        return [
            [(0, token)] if reply.draft.stop_reason is None else []
            for token, reply in zip(tokens, searches, strict=True)
        ]


def choose(logits: torch.Tensor, rows: Sequence[SampledReply], vocabulary: Vocabulary) -> list[int]:
    """Choose a token for each row of the logits `[B, V]`, and extend or end its draft; all rows have equal settings.

    Returns:
        The B tokens.

    Raises:
        GenerationError: Logits are NaN or +inf, or leave no token to choose.
    """
    end_id, settings = vocabulary.end_id, rows[0].settings
    replies, earlier = [row.draft.token_ids for row in rows], [row.earlier for row in rows]
    candidates = next_candidates(logits, settings, vocabulary, replies, earlier)
    if can_draw(logits, settings):
        tokens, by_floor, log_probs = draw(candidates, settings, end_id, [row.random.random() for row in rows])
    else:
        if settings.method == "greedy":
            tokens, by_floor = _best(candidates, end_id)
        else:
            tokens, by_floor = _draw(candidates, settings, end_id, rows)
        log_probs = candidates.model_log_probs[torch.arange(len(rows)), tokens].tolist()
    best = None if settings.top_logprobs is None else _most_likely(candidates, settings.top_logprobs)
    emitted = candidates.emitted.tolist()
    for index, row in enumerate(rows):
        draft = row.draft
        if emitted[index] >= settings.limit_tokens:
            tokens[index], draft.stop_reason = end_id, "limit"
            continue
        draft.log_prob += log_probs[index]
        if tokens[index] == end_id:
            draft.stop_reason = "floor" if by_floor[index] else "eos"
        else:
            draft.token_ids.append(tokens[index])
            if best is not None:
                draft.scores.append(TokenScore(tokens[index], log_probs[index], best[index]))
    return tokens


def _most_likely(candidates: Candidates, count: int) -> list[tuple[tuple[int, float], ...]]:
    """Return (token id, log p) of the `count` most likely allowed tokens of each row, under the model's distribution."""
    best = candidates.model_log_probs.topk(count)
    pairs = (zip(*row, strict=True) for row in zip(best.indices.tolist(), best.values.tolist(), strict=True))
    return [tuple(pair for pair in row if pair[1] > -math.inf) for row in pairs]


def _best(candidates: Candidates, end_id: int) -> tuple[list[int], list[bool]]:
    """Return the best token of each row, and whether it is EOS only because of the EOS floor (`rules.eos_floor`)."""
    unfloored = _argmax(candidates.ruled)
    if candidates.floor is None:
        return unfloored, [False] * len(unfloored)
    floored = _argmax(candidates.floor.apply(candidates.ruled.log_softmax(-1), candidates.emitted, end_id))
    late = (candidates.emitted > candidates.floor.start_tokens).tolist()
    tokens = [new if is_late else old for new, old, is_late in zip(floored, unfloored, late, strict=True)]
    return tokens, [token == end_id != old for token, old in zip(tokens, unfloored, strict=True)]


def _argmax(scores: torch.Tensor) -> list[int]:
    """Return the best token of each row, the first among equals; NumPy is several times faster than torch here."""
    return scores.numpy(force=True).argmax(-1).tolist()


def _draw(
    candidates: Candidates, settings: ReplySettings, end_id: int, rows: Sequence[SampledReply]
) -> tuple[list[int], list[bool]]:
    """Sample by the inverse CDF with EOS first: a reply ends iff u < p(eos), without the floor iff u < p0(eos).

    Returns:
        Tokens, and whether each is EOS because of the floor alone.
    """
    heated = _heat(candidates.ruled, settings.temperature)
    floor = candidates.floor
    floored = heated if floor is None else floor.apply(heated, candidates.emitted, end_id)
    draws = [row.random.random() for row in rows] if settings.xtc_probability else None
    shares, unfloored = truncate(floored, settings, end_id, draws).numpy(force=True), None
    if floored is not heated:
        unfloored = truncate(heated, settings, end_id, draws).numpy(force=True)
    tokens, by_floor = [], []
    for index, row in enumerate(rows):
        u = row.random.random()
        candidate_ids = np.flatnonzero(shares[index] > -np.inf)
        weights = np.exp(shares[index, candidate_ids].astype(np.float64) - shares[index].max())
        weights /= weights.sum()
        is_end = candidate_ids == end_id
        end = float(weights[is_end].sum())
        if u < end:
            tokens.append(end_id)
            by_floor.append(unfloored is not None and u >= _share_of(unfloored[index], end_id))
            continue
        cumulative = np.where(is_end, 0.0, weights).cumsum()
        position = np.searchsorted(cumulative, min(u - end, cumulative[-1] * (1 - 1e-12)), side="right")
        tokens.append(int(candidate_ids[position]))
        by_floor.append(False)
    return tokens, by_floor


def _heat(scores: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log softmax(scores / temperature) `[B, V]`, also of scores whose quotient overflows."""
    heated = scores / temperature
    top = heated.amax(-1, keepdim=True)
    if not bool(top.isfinite().all()):
        heated = torch.where(top.isfinite(), heated, (scores - scores.amax(-1, keepdim=True)) / temperature)
    return heated.log_softmax(-1)


def _share_of(log_weights: np.ndarray, token: int) -> float:
    """Return the probability of a token under unnormalised log-probabilities."""
    weights = np.exp(log_weights.astype(np.float64) - log_weights.max())
    return float(weights[token] / weights.sum())
