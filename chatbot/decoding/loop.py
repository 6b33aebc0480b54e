"""The one decode loop: everything that produces replies goes through `decode`."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from chatbot.decoding.batch import Steps, start_steps
from chatbot.decoding.beam import beam_search
from chatbot.decoding.candidates import Draft
from chatbot.decoding.sampler import Live, choose
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.model.protocol import DialogueModel
from chatbot.text.dialogue import Prompt


@torch.inference_mode()
def prefill(model: DialogueModel, prompts: Sequence[Prompt]) -> tuple[Steps, torch.Tensor]:
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
