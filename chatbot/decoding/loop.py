"""Decode loop: reads prompts and decodes one reply per row of a batch."""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence

import torch

from chatbot.decoding.batch import DialogueBatch, start_batch
from chatbot.decoding.beam import beam_search
from chatbot.decoding.candidates import Draft
from chatbot.decoding.sampler import LiveReply, choose
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.model.protocol import DialogueModel
from chatbot.text.dialogue import Prompt


@torch.inference_mode()
def prefill(model: DialogueModel, prompts: Sequence[Prompt]) -> tuple[DialogueBatch, torch.Tensor]:
    """Read several prompts together.

    Returns:
        The batch of dialogues after the prompts, and the logits `[B, V]` of the first reply tokens.
    """
    batch = start_batch(model, len(prompts))
    return batch, batch.read([prompt.input_ids for prompt in prompts], [prompt.speaker_ids for prompt in prompts])


def repeat_rows(batch: DialogueBatch, logits: torch.Tensor, count: int) -> torch.Tensor:
    """Repeat every row of a batch `count` times, one after the other, for as many candidates.

    Returns:
        The logits of all rows, `[B count, V]`.
    """
    if count == 1:
        return logits
    rows = torch.arange(len(logits), device=logits.device).repeat_interleave(count)
    batch.select(rows)
    return logits[rows]


@torch.inference_mode()
def decode(
    batch: DialogueBatch,
    logits: torch.Tensor,
    reply_speakers: Sequence[int],
    settings: ReplySettings,
    vocabulary: Vocabulary,
    seeds: Sequence[int],
    earlier: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Iterator[list[Draft]]:
    """Decode one reply per row and yield all drafts after every step; in the last yield all have a stop reason.

    Every row has its random numbers and leaves the batch when it ends, so a reply does not depend on its neighbours
    beyond the rounding of a batched matrix product (about 2e-6 on logits; none in the compiled library).

    Args:
        batch: Dialogues after the prompts; decoding uses them up.
        logits: Logits `[B, V]` of the first reply tokens.
        reply_speakers: Speaker id of each reply.
        settings: Settings of all rows.
        vocabulary: Properties of the tokens.
        seeds: One seed per row.
        earlier: Token ids of the last replies in each row's conversation, for the rules against repetition.

    Raises:
        GenerationError: The model's logits are NaN or +inf, or leave no token to choose.
    """
    last_replies = [()] * len(seeds) if earlier is None else earlier
    if settings.method == "beam":
        yield from beam_search(batch, logits, reply_speakers, settings, vocabulary, last_replies)
        return
    rows = [LiveReply(settings, random.Random(seed), texts) for seed, texts in zip(seeds, last_replies, strict=True)]
    drafts = [row.draft for row in rows]
    speakers = torch.tensor(reply_speakers, device=logits.device)
    while True:
        tokens = choose(logits, rows, vocabulary)
        unfinished = [index for index, row in enumerate(rows) if row.draft.stop_reason is None]
        yield drafts
        if not unfinished:
            return
        if len(unfinished) < len(rows):
            kept = torch.tensor(unfinished, device=logits.device)
            batch.select(kept)
            speakers = speakers[kept]
            tokens, rows = [tokens[index] for index in unfinished], [rows[index] for index in unfinished]
        logits = batch(torch.tensor(tokens, device=logits.device), speakers)
