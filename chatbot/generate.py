"""The one decode loop: everything that produces replies goes through `decode`."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import torch

from chatbot.dialogue import Prompt
from chatbot.errors import XianliaoError
from chatbot.model import XianliaoForCausalLM
from chatbot.sampling import ReplySettings, Vocabulary, truncation
from chatbot.steps import Steps, start_steps
from chatbot.termination import StopReason


class GenerationError(XianliaoError):
    """A model whose output cannot be decoded."""


@dataclass
class Draft:
    """A reply in the making.

    Attributes:
        token_ids: Tokens so far, EOS not included.
        log_prob: Sum of log p, in nats, of the tokens and of an EOS that was not forced, under the model's own
            distribution over the tokens allowed there (no [PAD], no [CLS], no EOS before min_reply_tokens).
        stop_reason: None while the reply goes on.
    """

    token_ids: list[int] = field(default_factory=list)
    log_prob: float = 0.0
    stop_reason: StopReason | None = None


@torch.inference_mode()
def prefill(model: XianliaoForCausalLM, prompts: Sequence[Prompt]) -> tuple[Steps, torch.Tensor]:
    """Reads several prompts together.

    Returns:
        What is remembered of them and the logits `[B, V]` of the first reply tokens.
    """
    steps = start_steps(model, len(prompts))
    return steps, steps.read([p.input_ids for p in prompts], [p.speaker_ids for p in prompts])


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
    drafts = [Draft() for _ in seeds]
    draws = [random.Random(seed) for seed in seeds]
    alive = list(range(len(drafts)))
    said = [()] * len(drafts) if earlier is None else earlier
    speakers = torch.tensor(reply_speakers, device=logits.device)
    for emitted in range(settings.limit_tokens + 1):
        rows = [(drafts[i], draws[i], said[i]) for i in alive]
        tokens = _choose(logits, emitted, settings, vocabulary, *map(list, zip(*rows, strict=True)))
        going = [place for place, i in enumerate(alive) if drafts[i].stop_reason is None]
        yield drafts
        if not going:
            return
        if len(going) < len(alive):
            kept = torch.tensor(going, device=logits.device)
            steps.select(kept)
            speakers = speakers[kept]
            tokens, alive = [tokens[place] for place in going], [alive[place] for place in going]
        logits = steps(torch.tensor(tokens, device=logits.device), speakers)


def _choose(
    logits: torch.Tensor,
    emitted: int,
    settings: ReplySettings,
    vocabulary: Vocabulary,
    drafts: list[Draft],
    draws: list[random.Random],
    said: list[Sequence[Sequence[int]]],
) -> list[int]:
    """Chooses a token for each row, extends or ends its draft, and returns the tokens."""
    end_id = vocabulary.end_id
    logits = logits.float().clone()
    banned = vocabulary.banned_ids + (end_id,) * (emitted < settings.min_reply_tokens)
    logits.index_fill_(1, torch.tensor(banned, dtype=torch.int64, device=logits.device), -math.inf)
    _check(logits.amax(-1).tolist())
    if emitted >= settings.limit_tokens:
        for draft in drafts:
            draft.stop_reason = "limit"
        return [end_id] * len(drafts)
    floor = settings.floor if settings.floor is not None and emitted > settings.floor.start_tokens else None
    own = logits.log_softmax(-1)
    ruled = own
    if (repetition := settings.repetition(end_id)) is not None:
        unruled = logits.clone()
        repetition.apply(logits, [draft.token_ids for draft in drafts], said)
        stuck = logits.amax(-1) == -math.inf  # all has been said, and it is too early to end
        logits[stuck] = unruled[stuck]
        ruled = logits.log_softmax(-1)
    if settings.method == "greedy":
        tokens = unfloored = _best(ruled)
        if floor is not None:
            tokens = _best(floor.apply(ruled, emitted, end_id))
        by_floor = [token == end_id != other for token, other in zip(tokens, unfloored, strict=True)]
    else:
        heated = (logits / settings.temperature).log_softmax(-1)
        floored = heated if floor is None else floor.apply(heated, emitted, end_id)
        tokens, by_floor = _draw(heated, floored, settings, end_id, draws)
    for row, (draft, token) in enumerate(zip(drafts, tokens, strict=True)):
        draft.log_prob += own[row, token].item()
        if token == end_id:
            draft.stop_reason = "floor" if by_floor[row] else "eos"
        else:
            draft.token_ids.append(token)
    return tokens


def _best(scores: torch.Tensor) -> list[int]:
    """The first of the best tokens of each row; NumPy finds it several times faster than torch does."""
    return scores.numpy(force=True).argmax(-1).tolist()


def _check(largest: list[float]) -> None:
    """Refuses what cannot be decoded; the largest logit of a row shows a NaN, an infinity and that nothing is left."""
    if any(math.isnan(value) or value == math.inf for value in largest):
        raise GenerationError("The model's output is not a number; the checkpoint is damaged or its training diverged.")
    if -math.inf in largest:
        raise GenerationError(
            "The model leaves no token to choose; the checkpoint is damaged or its training diverged."
        )


def _draw(
    heated: torch.Tensor, floored: torch.Tensor, settings: ReplySettings, end_id: int, draws: list[random.Random]
) -> tuple[list[int], list[bool]]:
    """Inverse-CDF sampling with EOS first: u < p(eos) ends the reply, and would have without the floor iff u < p0(eos)."""
    rules = truncation(settings, end_id)
    probabilities = rules(None, floored).cpu().double().softmax(-1)
    if floored is not heated:
        unfloored_end = rules(None, heated).cpu().double().softmax(-1)[:, end_id].tolist()
    end = probabilities[:, end_id].tolist()
    probabilities[:, end_id] = 0
    cumulative = probabilities.cumsum(-1)
    tokens, by_floor = [], []
    for row, draw in enumerate(draws):
        u = draw.random()
        if u < end[row]:
            tokens.append(end_id)
            by_floor.append(floored is not heated and u >= unfloored_end[row])
            continue
        place = torch.searchsorted(
            cumulative[row], min(u - end[row], cumulative[row, -1].item() * (1 - 1e-12)), right=True
        )
        tokens.append(int(place))
        by_floor.append(False)
    return tokens, by_floor
