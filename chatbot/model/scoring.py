"""nats/unit: the one unit of quality, the same for every tokenizer and model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F

from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.dialogue import Sample
from chatbot.text.layouts import IGNORED_LABEL, Layout


@dataclass(frozen=True)
class Quality:
    """How well a model predicts dialogues.

    Attributes:
        nats: Sum of -log p over all tokens of all turns and their [SEP]s, with full history.
        units: Characters of the turns after space joining, plus turns.
        tokens: Number of scored tokens.
        dialogues: Number of dialogues.
    """

    nats: float
    units: int
    tokens: int
    dialogues: int

    @property
    def nats_per_unit(self) -> float:
        return self.nats / self.units


def pack_whole(samples: Sequence[Sample], row_tokens: int) -> list[list[int]]:
    """Groups of dialogue indices of about `row_tokens` in all; a longer dialogue has a row of its own, uncut."""
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
    model: XianliaoForCausalLM,
    layout: Layout,
    dialogues: Sequence[Sequence[Sequence[int]]],
    row_tokens: int = 2048,
    first_turns: Sequence[int] | None = None,
) -> list[list[float]]:
    """Nats of each turn of each dialogue: -sum log p of its tokens and its [SEP], with full history.

    Args:
        model: Left in the mode (train or eval) it was in.
        layout: The model's layout.
        dialogues: Token ids of the turns of each dialogue.
        row_tokens: Dialogues are packed into rows of about so many tokens; the result does not depend on it.
        first_turns: Index of the first turn of each in the dialogue it was taken from, which decides who speaks; else 0.
    """
    firsts = [0] * len(dialogues) if first_turns is None else first_turns
    samples = [layout.lay_out(turns, first) for turns, first in zip(dialogues, firsts, strict=True)]
    nats: list[list[float]] = [[] for _ in samples]
    training, device = model.training, next(model.parameters()).device
    model.eval()
    for row in pack_whole(samples, row_tokens):
        members = [samples[index] for index in row]
        lengths = torch.tensor([len(sample.input_ids) for sample in members])
        segments = torch.arange(len(members)).repeat_interleave(lengths).to(device)
        ids, speakers, labels = (
            torch.tensor([value for sample in members for value in getattr(sample, name)], device=device)
            for name in ("input_ids", "speaker_ids", "labels")
        )
        logits = model(ids[None], token_type_ids=speakers[None], segment_ids=segments[None]).logits[0, :-1].float()
        losses = F.cross_entropy(logits, labels[1:], ignore_index=IGNORED_LABEL, reduction="none").cpu().double()
        losses = losses[(labels[1:] != IGNORED_LABEL).cpu()]  # those of the turns, each with its end
        sizes = [len(turn) + 1 for i in row for turn in dialogues[i]]
        places = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes))
        sums = torch.zeros(len(sizes), dtype=torch.float64).index_add_(0, places, losses).tolist()
        for index in row:
            nats[index] = sums[: len(dialogues[index])]
            del sums[: len(dialogues[index])]
    model.train(training)
    return nats


def score_dialogues(
    model: XianliaoForCausalLM,
    layout: Layout,
    dialogues: Sequence[Sequence[Sequence[int]]],
    row_tokens: int = 2048,
) -> list[float]:
    """Nats of each dialogue; see `score_turns`."""
    return [sum(turns) for turns in score_turns(model, layout, dialogues, row_tokens)]


def measure_quality(
    model: XianliaoForCausalLM,
    layout: Layout,
    dialogues: Sequence[Sequence[Sequence[int]]],
    units: Sequence[int],
) -> Quality:
    """nats/unit of a model on dialogues; `units` is `chatbot.text.dialogue.count_units` of each."""
    nats = score_dialogues(model, layout, dialogues)
    tokens = sum(len(turn) + 1 for turns in dialogues for turn in turns)
    return Quality(sum(nats), sum(units), tokens, len(dialogues))
