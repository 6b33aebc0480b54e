"""Sampler: chooses the next token of each reply, by sampling or greedily."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from chatbot.decoding.candidates import Candidates, Draft, next_candidates
from chatbot.decoding.native_draw import can_draw, draw
from chatbot.decoding.rules.truncation import truncation
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary


@dataclass
class Live:
    """A reply that is being decoded.

    Attributes:
        settings: How.
        draw: Its own random numbers.
        said: Token ids of the last replies in its conversation.
        draft: What there is of it.
    """

    settings: ReplySettings
    draw: random.Random
    said: Sequence[Sequence[int]] = ()
    draft: Draft = field(default_factory=Draft)


def choose(logits: torch.Tensor, rows: Sequence[Live], vocabulary: Vocabulary) -> list[int]:
    """Chooses a token for each row of logits `[B, V]`, extends or ends its draft, and returns the tokens.

    Rows of other settings and lengths may be together; each gets what it would get alone.

    Raises:
        GenerationError: Logits are NaN or +inf, or leave no token to choose.
    """
    groups: dict[ReplySettings, list[int]] = {}
    for place, row in enumerate(rows):
        groups.setdefault(row.settings, []).append(place)
    if len(groups) == 1:
        return _choose(logits, rows, vocabulary)
    tokens = [0] * len(rows)
    for places in groups.values():
        chosen = _choose(logits[places], [rows[place] for place in places], vocabulary)
        for place, token in zip(places, chosen, strict=True):
            tokens[place] = token
    return tokens


def _choose(logits: torch.Tensor, rows: Sequence[Live], vocabulary: Vocabulary) -> list[int]:
    """`choose` for rows with the same settings."""
    end_id, settings = vocabulary.end_id, rows[0].settings
    found = next_candidates(logits, settings, vocabulary, [row.draft.token_ids for row in rows], [r.said for r in rows])
    if can_draw(logits, settings):
        tokens, by_floor, log_probs = draw(found, settings, end_id, [row.draw.random() for row in rows])
    else:
        tokens, by_floor = _take(found, end_id) if settings.method == "greedy" else _draw(found, settings, end_id, rows)
        log_probs = found.own[torch.arange(len(rows)), tokens].tolist()
    for place, row in enumerate(rows):
        draft = row.draft
        if len(draft.token_ids) >= settings.limit_tokens:
            tokens[place], draft.stop_reason = end_id, "limit"
            continue
        draft.log_prob += log_probs[place]
        if tokens[place] == end_id:
            draft.stop_reason = "floor" if by_floor[place] else "eos"
        else:
            draft.token_ids.append(tokens[place])
    return tokens


def _take(found: Candidates, end_id: int) -> tuple[list[int], list[bool]]:
    """The best token of each row, and whether it is EOS by the floor alone."""
    unfloored = _best(found.ruled)
    if found.floor is None:
        return unfloored, [False] * len(unfloored)
    floored = _best(found.floor.apply(found.ruled.log_softmax(-1), found.emitted, end_id))
    late = (found.emitted > found.floor.start_tokens).tolist()
    tokens = [new if is_late else old for new, old, is_late in zip(floored, unfloored, late, strict=True)]
    return tokens, [token == end_id != old for token, old in zip(tokens, unfloored, strict=True)]


def _best(scores: torch.Tensor) -> list[int]:
    """The first of the best tokens of each row; NumPy finds it several times faster than torch does."""
    return scores.numpy(force=True).argmax(-1).tolist()


def _draw(
    found: Candidates, settings: ReplySettings, end_id: int, rows: Sequence[Live]
) -> tuple[list[int], list[bool]]:
    """Inverse-CDF sampling with EOS first: u < p(eos) ends the reply, and would have without the floor iff u < p0(eos)."""
    heated = (found.ruled / settings.temperature).log_softmax(-1)
    floored = heated if found.floor is None else found.floor.apply(heated, found.emitted, end_id)
    rules = truncation(settings, end_id)
    shares, unfloored = rules(None, floored).numpy(force=True), None
    if floored is not heated:
        unfloored = rules(None, heated).numpy(force=True)
    tokens, by_floor = [], []
    for row, live in enumerate(rows):
        u = live.draw.random()
        kept = np.flatnonzero(shares[row] > -np.inf)
        weights = np.exp(shares[row, kept].astype(np.float64) - shares[row].max())
        weights /= weights.sum()
        is_end = kept == end_id
        end = float(weights[is_end].sum())
        if u < end:
            tokens.append(end_id)
            by_floor.append(unfloored is not None and u >= _share_of(unfloored[row], end_id))
            continue
        cumulative = np.where(is_end, 0.0, weights).cumsum()
        place = np.searchsorted(cumulative, min(u - end, cumulative[-1] * (1 - 1e-12)), side="right")
        tokens.append(int(kept[place]))
        by_floor.append(False)
    return tokens, by_floor


def _share_of(log_weights: np.ndarray, token: int) -> float:
    """Probability of a token under unnormalised log-probabilities."""
    weights = np.exp(log_weights.astype(np.float64) - log_weights.max())
    return float(weights[token] / weights.sum())
