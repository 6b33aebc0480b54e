"""The one decode loop: everything that produces replies goes through `decode`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from chatbot.beam import beam_search
from chatbot.dialogue import Prompt
from chatbot.model import XianliaoForCausalLM
from chatbot.native_draw import can_draw, draw
from chatbot.next_token import Candidates, Draft, next_candidates
from chatbot.reply_settings import ReplySettings
from chatbot.sampling import Vocabulary, truncation
from chatbot.steps import Steps, start_steps


@torch.inference_mode()
def prefill(model: XianliaoForCausalLM, prompts: Sequence[Prompt]) -> tuple[Steps, torch.Tensor]:
    """Reads several prompts together.

    Returns:
        What is remembered of them and the logits `[B, V]` of the first reply tokens.
    """
    steps = start_steps(model, len(prompts))
    return steps, steps.read([p.input_ids for p in prompts], [p.speaker_ids for p in prompts])


def repeated(steps: Steps, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Makes `count` rows of each, one after the other, for as many candidates; the logits of all, `[B count, V]`."""
    if count == 1:
        return logits
    rows = torch.arange(len(logits), device=logits.device).repeat_interleave(count)
    steps.select(rows)
    return logits[rows]


@torch.inference_mode()
def decode(
    steps: Steps,
    logits: torch.Tensor,
    reply_speakers: Sequence[int],
    settings: ReplySettings,
    vocabulary: Vocabulary,
    seeds: Sequence[int],
    earlier: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Iterator[list[Draft]]:
    """Decodes one reply a row and yields all drafts after every step; the last yield has every stop reason set.

    Rows draw from random numbers of their own and leave the batch when they end, so a reply does not depend on its
    neighbours beyond the rounding of a batched matrix product (about 2e-6 on logits; none in the compiled step).

    Args:
        steps: After the prompts; used up.
        logits: `[B, V]`, of the first reply tokens.
        reply_speakers: Speaker id of each reply.
        settings: One for all rows.
        vocabulary: Special ids.
        seeds: One a row.
        earlier: Token ids of the last replies in each row's conversation, for the rules against repetition.

    Raises:
        GenerationError: The model's logits are NaN or +inf, or leave no token to choose.
    """
    said = [()] * len(seeds) if earlier is None else earlier
    if settings.method == "beam":
        yield from beam_search(steps, logits, reply_speakers, settings, vocabulary, said)
        return
    rows = [Live(settings, random.Random(seed), each) for seed, each in zip(seeds, said, strict=True)]
    drafts = [row.draft for row in rows]
    speakers = torch.tensor(reply_speakers, device=logits.device)
    while True:
        tokens = choose(logits, rows, vocabulary)
        going = [place for place, row in enumerate(rows) if row.draft.stop_reason is None]
        yield drafts
        if not going:
            return
        if len(going) < len(rows):
            kept = torch.tensor(going, device=logits.device)
            steps.select(kept)
            speakers = speakers[kept]
            tokens, rows = [tokens[place] for place in going], [rows[place] for place in going]
        logits = steps(torch.tensor(tokens, device=logits.device), speakers)


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
