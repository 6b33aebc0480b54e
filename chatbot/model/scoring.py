"""Negative log-likelihood of dialogues, the basis of nats/unit, which compares models with different tokenizers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F

from chatbot.model.protocol import DialogueModel
from chatbot.text.dialogue import Sample
from chatbot.text.layouts import IGNORED_LABEL, Layout

MAX_ROW_LOGITS = 2**24
"""Maximum number of logits of a row that are in memory at the same time: 2,048 tokens with a vocabulary of 8,192."""

MIN_ROW_TOKENS, MAX_ROW_TOKENS = 256, 2048


def tokens_per_row(vocab_size: int) -> int:
    """Return how many tokens to pack into a row, so that the logits of a large vocabulary fit into memory."""
    return min(MAX_ROW_TOKENS, max(MIN_ROW_TOKENS, MAX_ROW_LOGITS // vocab_size))


def pack_whole(samples: Sequence[Sample], row_tokens: int) -> list[list[int]]:
    """Group the indices of dialogues into rows of at most `row_tokens`; a longer dialogue fills a row alone, uncut."""
    rows: list[list[int]] = []
    room = 0
    for index in sorted(range(len(samples)), key=lambda i: len(samples[i].input_ids), reverse=True):
        length = len(samples[index].input_ids)
        if not rows or length > room:
            rows.append([])
            room = row_tokens
        rows[-1].append(index)
        room -= length
    return rows


@torch.inference_mode()
def score_turns(
    model: DialogueModel,
    layout: Layout,
    dialogues: Sequence[Sequence[Sequence[int]]],
    row_tokens: int | None = None,
    first_turns: Sequence[int] | None = None,
    advance: Callable[[int], object] = lambda count: None,
) -> list[list[float]]:
    """Return the nats of each turn of each dialogue: -sum log p of its tokens and its end, with full history.

    Args:
        model: Its mode (training or evaluation) is restored afterwards.
        layout: Layout of the model.
        dialogues: Token ids of the turns of each dialogue.
        row_tokens: Number of tokens per packed row; the result does not depend on it. Default: `tokens_per_row`.
        first_turns: For each dialogue, the index of its first turn in the longer dialogue that it was cut from; this
            index decides who speaks first. Default: 0.
        advance: Function that is called with the number of dialogues scored since its last call, for a progress bar.
    """
    firsts = [0] * len(dialogues) if first_turns is None else first_turns
    samples = [layout.lay_out(turns, first) for turns, first in zip(dialogues, firsts, strict=True)]
    row_tokens = tokens_per_row(model.config.vocab_size) if row_tokens is None else row_tokens
    nats: list[list[float]] = [[] for _ in samples]
    was_training = model.training
    model.eval()
    for row in pack_whole(samples, row_tokens):
        scored = _score_row(model, [samples[index] for index in row])
        start = 0
        for index in row:
            for turn in dialogues[index]:
                end = start + len(turn) + 1  # with the end of turn
                nats[index].append(sum(scored[start:end]))
                start = end
        advance(len(row))
    model.train(was_training)
    return nats


def _score_row(model: DialogueModel, samples: Sequence[Sample]) -> list[float]:
    """Return the nats of all scored tokens of dialogues in one packed row, in order."""
    lengths = torch.tensor([len(sample.input_ids) for sample in samples])
    segments = torch.arange(len(samples)).repeat_interleave(lengths)
    ids = torch.tensor([token for sample in samples for token in sample.input_ids])
    speakers = torch.tensor([speaker for sample in samples for speaker in sample.speaker_ids])
    labels = torch.tensor([label for sample in samples for label in sample.labels])[1:]
    ids, speakers, segments = (x[None].to(model.device) for x in (ids, speakers, segments))
    logits = model(ids, token_type_ids=speakers, segment_ids=segments).logits
    assert logits is not None  # only a call with labels may leave them out
    logits = logits[0, :-1]
    targets = labels.to(model.device)
    rows = max(1, MAX_ROW_LOGITS // 16 // logits.shape[-1])  # fp32 copies of a part at a time
    losses = [
        F.cross_entropy(part.float(), target, ignore_index=IGNORED_LABEL, reduction="none")
        for part, target in zip(logits.split(rows), targets.split(rows), strict=True)
    ]
    return torch.cat(losses).cpu()[labels != IGNORED_LABEL].tolist()


def score_dialogues(
    model: DialogueModel,
    layout: Layout,
    dialogues: Sequence[Sequence[Sequence[int]]],
    row_tokens: int | None = None,
) -> list[float]:
    """Return the nats of each dialogue; see `score_turns`."""
    return [sum(turns) for turns in score_turns(model, layout, dialogues, row_tokens)]
