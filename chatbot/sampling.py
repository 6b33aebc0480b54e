"""From logits to the distribution a reply token is drawn from; every rule also works in transformers' `generate()`.

Order: rules against repetition, temperature, EOS floor, truncation. Consistent truncation (Welleck et al., arXiv
2002.02492, definitions 4 and 5) keeps EOS among the candidates, so a sampled reply ends with probability one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    MinNewTokensLengthLogitsProcessor,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
)

from chatbot.errors import XianliaoError
from chatbot.repetition import RepetitionProcessor, RepetitionRules
from chatbot.termination import EosFloor, EosFloorProcessor


class ReplySettingsError(XianliaoError):
    """Decoding settings that cannot be used."""


@dataclass(frozen=True)
class ReplySettings:
    """How a reply is decoded. The numbers of the floor come from the checkpoint's generation_config.json.

    Attributes:
        method: `sample`, or `greedy`.
        temperature: Divides the logits when sampling.
        top_k: Candidates kept when sampling; 0 keeps all.
        top_p: Probability mass of the nucleus when sampling; 1 keeps all.
        min_p: Keep tokens with at least this share of the best one's probability when sampling; 0 keeps all.
        typical_p: Mass of the tokens nearest to the expected information when sampling; 1 keeps all.
        repetition_penalty, no_repeat_ngram: See `chatbot.repetition.RepetitionRules`; 1 and 0 switch them off.
        keep_eos: Whether truncation always keeps EOS.
        floor_start_tokens, floor_delta_tokens: t0 and delta of `chatbot.termination`; t0 None switches the floor off.
        max_reply_tokens: Force EOS after so many tokens; None is t0 + 2 delta.
        min_reply_tokens: EOS is not allowed before so many tokens.
    """

    method: Literal["sample", "greedy"] = "sample"
    temperature: float = 0.7
    top_k: int = 0
    top_p: float = 0.9
    min_p: float = 0.0
    typical_p: float = 1.0
    repetition_penalty: float = 1.0
    no_repeat_ngram: int = 0
    keep_eos: bool = True
    floor_start_tokens: int | None = 64
    floor_delta_tokens: int = 32
    max_reply_tokens: int | None = None
    min_reply_tokens: int = 1

    def __post_init__(self) -> None:
        numbers = (
            ("temperature", "top_p", "min_p", "typical_p", "repetition_penalty"),
            ("top_k", "no_repeat_ngram", "floor_delta_tokens", "min_reply_tokens"),
        )
        optional = ("floor_start_tokens", "max_reply_tokens")
        faults = [
            f"{name} must be a number, got {getattr(self, name)!r}"
            for name in numbers[0]
            if not _is_number(getattr(self, name))
        ]
        for name in (*numbers[1], *optional):
            value = getattr(self, name)
            if not (_is_whole(value) or (value is None and name in optional)):
                faults.append(f"{name} must be a whole number, got {value!r}")
        if faults:
            raise ReplySettingsError("Decoding: " + "; ".join(faults) + ".")
        if self.method not in ("sample", "greedy"):
            faults.append(f"method is sample or greedy, not {self.method}")
        if not 0.01 <= self.temperature <= 100:
            faults.append(f"temperature must be between 0.01 and 100, got {self.temperature} (use greedy for 0)")
        if not 0 < self.top_p <= 1:
            faults.append(f"top_p must be above 0 and at most 1, got {self.top_p}")
        if not 0 <= self.min_p <= 1:
            faults.append(f"min_p must be between 0 and 1, got {self.min_p}")
        if not 0 < self.typical_p <= 1:
            faults.append(f"typical_p must be above 0 and at most 1, got {self.typical_p}")
        if not 1 <= self.repetition_penalty <= 10:
            faults.append(f"repetition_penalty must be between 1 and 10, got {self.repetition_penalty}")
        if self.no_repeat_ngram < 0:
            faults.append(f"no_repeat_ngram must be at least 0, got {self.no_repeat_ngram}")
        if self.top_k < 0:
            faults.append(f"top_k must be at least 0, got {self.top_k}")
        if self.min_reply_tokens < 0:
            faults.append(f"min_reply_tokens must be at least 0, got {self.min_reply_tokens}")
        if self.floor_delta_tokens < 1:
            faults.append(f"floor_delta_tokens must be at least 1, got {self.floor_delta_tokens}")
        if self.floor_start_tokens is not None and self.floor_start_tokens < self.min_reply_tokens:
            faults.append(f"floor_start_tokens ({self.floor_start_tokens}) must not be below min_reply_tokens")
        if self.floor_start_tokens is None and self.max_reply_tokens is None:
            faults.append("without a floor, max_reply_tokens must be given: a reply might never end")
        if self.max_reply_tokens is not None and self.max_reply_tokens < max(1, self.min_reply_tokens):
            faults.append(f"max_reply_tokens must be at least 1 and min_reply_tokens, got {self.max_reply_tokens}")
        if faults:
            raise ReplySettingsError("Decoding: " + "; ".join(faults) + ".")

    @property
    def floor(self) -> EosFloor | None:
        if self.floor_start_tokens is None:
            return None
        return EosFloor(self.floor_start_tokens, self.floor_delta_tokens)

    def repetition(self, end_id: int) -> RepetitionRules | None:
        """The rules against repetition, or None where they are off."""
        if self.repetition_penalty == 1 and not self.no_repeat_ngram:
            return None
        return RepetitionRules(self.repetition_penalty, self.no_repeat_ngram, end_id)

    @property
    def limit_tokens(self) -> int:
        """The most tokens a reply has before EOS is forced; never beyond the floor's own limit."""
        limits = [self.max_reply_tokens, self.floor.limit_tokens if self.floor else None]
        return min(limit for limit in limits if limit is not None)

    def with_changes(self, **changes) -> ReplySettings:
        """A copy in which the given settings, those that are not None, differ."""
        return replace(self, **{name: value for name, value in changes.items() if value is not None})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


@dataclass(frozen=True)
class Vocabulary:
    """The special ids that decoding has to know: `end_id` ends a turn, `banned_ids` never appear in a reply."""

    end_id: int
    banned_ids: tuple[int, ...]


class ConsistentTopK(LogitsProcessor):
    """Keeps the k best tokens and EOS: q(v) is proportional to p(v) 1[v in V_k or v = eos]."""

    def __init__(self, top_k: int, eos_id: int | None):
        self.top_k, self.eos_id = top_k, eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
        removed = scores < least
        if self.eos_id is not None:
            removed[:, self.eos_id] = False
        return scores.masked_fill(removed, -math.inf)


class ConsistentMinP(LogitsProcessor):
    """Keeps tokens with p(v) >= min_p max p (Nguyen et al., arXiv 2407.01082), and EOS."""

    def __init__(self, min_p: float, eos_id: int | None):
        self.log_share, self.eos_id = math.log(min_p), eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        removed = scores < scores.amax(-1, keepdim=True) + self.log_share
        if self.eos_id is not None:
            removed[:, self.eos_id] = False
        return scores.masked_fill(removed, -math.inf)


class ConsistentTypical(LogitsProcessor):
    """Locally typical sampling (Meister et al., arXiv 2202.00666, equation 10), and EOS.

    Keeps the tokens whose information -log p is nearest to the entropy, the fewest whose mass reaches typical_p; of
    equally near ones those with lower ids come first.
    """

    def __init__(self, typical_p: float, eos_id: int | None):
        self.typical_p, self.eos_id = typical_p, eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        log_p = scores.log_softmax(-1)
        p = log_p.exp()
        entropy = -(p * log_p.masked_fill(p == 0, 0)).sum(-1, keepdim=True)
        order = (-log_p - entropy).abs().sort(dim=-1, stable=True).indices
        mass = p.gather(-1, order)
        needed = mass.cumsum(-1) - mass < self.typical_p
        kept = torch.zeros_like(needed).scatter(-1, order, needed)
        if self.eos_id is not None:
            kept[:, self.eos_id] = True
        return scores.masked_fill(~kept, -math.inf)


class ConsistentTopP(LogitsProcessor):
    """Keeps the smallest set of best tokens whose mass reaches top_p, and EOS (`eos_id` None: plain nucleus).

    Of equal tokens the ones with lower ids come first.
    """

    def __init__(self, top_p: float, eos_id: int | None):
        self.top_p, self.eos_id = top_p, eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        probabilities = scores.softmax(-1)
        ordered = _descending(probabilities)
        needed = (ordered.cumsum(-1) - ordered < self.top_p).sum(-1, keepdim=True).clamp_min(1)
        least = ordered.gather(-1, needed - 1)
        kept = probabilities >= least
        if (kept.sum(-1, keepdim=True) > needed).any():
            above, equal = probabilities > least, probabilities == least
            kept = above | (equal & (equal.cumsum(-1) <= needed - above.sum(-1, keepdim=True)))
        if self.eos_id is not None:
            kept[:, self.eos_id] = True
        return scores.masked_fill(~kept, -math.inf)


def _descending(x: torch.Tensor) -> torch.Tensor:
    """Values of each row in order; on CPUs by NumPy, which is ten times faster."""
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.sort(descending=True).values
    return torch.from_numpy(np.sort(x.detach().numpy())).flip(-1)


def truncation(settings: ReplySettings, eos_id: int) -> LogitsProcessorList:
    """The truncation rules of the settings: top-k, nucleus, typical, min-p, those that are on, in this order."""
    kept = eos_id if settings.keep_eos else None
    rules = LogitsProcessorList()
    if settings.method == "sample" and settings.top_k:
        rules.append(ConsistentTopK(settings.top_k, kept))
    if settings.method == "sample" and settings.top_p < 1:
        rules.append(ConsistentTopP(settings.top_p, kept))
    if settings.method == "sample" and settings.typical_p < 1:
        rules.append(ConsistentTypical(settings.typical_p, kept))
    if settings.method == "sample" and settings.min_p > 0:
        rules.append(ConsistentMinP(settings.min_p, kept))
    return rules


def reply_processors(
    settings: ReplySettings, vocabulary: Vocabulary, prompt_tokens: int, earlier: Sequence[Sequence[int]] = ()
) -> LogitsProcessorList:
    """Our decoding for transformers' `generate(logits_processor=…, temperature=1, top_p=1, top_k=0)`.

    One list in the right order; with `do_sample=False` it gives the very reply of `chatbot.generate.decode`.

    Args:
        settings: How to decode.
        vocabulary: Special ids.
        prompt_tokens: Where the reply begins.
        earlier: Token ids of the bot's last replies, for the rules against repetition.
    """
    rules = LogitsProcessorList()
    if vocabulary.banned_ids:
        rules.append(SuppressTokensLogitsProcessor(list(vocabulary.banned_ids)))
    if (repetition := settings.repetition(vocabulary.end_id)) is not None:
        rules.append(RepetitionProcessor(repetition, prompt_tokens, earlier))
    if settings.min_reply_tokens:
        least = settings.min_reply_tokens
        rules.append(MinNewTokensLengthLogitsProcessor(prompt_tokens, least, vocabulary.end_id))
    if settings.method == "sample" and settings.temperature != 1:
        rules.append(TemperatureLogitsWarper(settings.temperature))
    rules.append(EosFloorProcessor(settings.floor, vocabulary.end_id, prompt_tokens, settings.limit_tokens))
    rules.extend(truncation(settings, vocabulary.end_id))
    return rules
