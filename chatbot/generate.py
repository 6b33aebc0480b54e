"""The one decode loop: everything that produces replies goes through `decode`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from chatbot.beam import beam_search
from chatbot.dialogue import Prompt
from chatbot.model import XianliaoForCausalLM
from chatbot.next_token import Draft, next_candidates
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
    drafts = [Draft() for _ in seeds]
    draws = [random.Random(seed) for seed in seeds]
    alive = list(range(len(drafts)))
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
    found = next_candidates(logits, emitted, settings, vocabulary, [draft.token_ids for draft in drafts], said)
    if emitted >= settings.limit_tokens:
        for draft in drafts:
            draft.stop_reason = "limit"
        return [end_id] * len(drafts)
    if settings.method == "greedy":
        tokens = unfloored = _best(found.ruled)
        if found.floor is not None:
            tokens = _best(found.floor.apply(found.ruled.log_softmax(-1), emitted, end_id))
        by_floor = [token == end_id != other for token, other in zip(tokens, unfloored, strict=True)]
    else:
        heated = (found.ruled / settings.temperature).log_softmax(-1)
        floored = heated if found.floor is None else found.floor.apply(heated, emitted, end_id)
        tokens, by_floor = _draw(heated, floored, settings, end_id, draws)
    for row, (draft, token) in enumerate(zip(drafts, tokens, strict=True)):
        draft.log_prob += found.own[row, token].item()
        if token == end_id:
            draft.stop_reason = "floor" if by_floor[row] else "eos"
        else:
            draft.token_ids.append(token)
    return tokens


def _best(scores: torch.Tensor) -> list[int]:
    """The first of the best tokens of each row; NumPy finds it several times faster than torch does."""
    return scores.numpy(force=True).argmax(-1).tolist()


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
