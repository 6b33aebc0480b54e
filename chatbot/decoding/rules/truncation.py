"""Truncation rules: the distribution that a reply token is drawn from; each rule also works in `generate()`.

Order of all rules: banned tokens and words, rules against repetition, temperature, EOS floor, truncation. Consistent
truncation (Welleck et al., arXiv 2002.02492, definitions 4 and 5) keeps EOS among the candidates, so a sampled reply
ends with probability one.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from chatbot.decoding.settings import ReplySettings

NUCLEUS_SEARCH_TOKENS = 1024
"""Number of best tokens that are sorted first to find a nucleus; all tokens are sorted if they do not suffice."""


class ConsistentTopK(LogitsProcessor):
    """Keep the k best tokens and EOS: q(v) is proportional to p(v) 1[v in V_k or v = eos]."""

    def __init__(self, top_k: int, eos_id: int | None):
        self.top_k, self.eos_id = top_k, eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        least = scores.topk(min(self.top_k, scores.shape[-1])).values[:, -1:]
        removed = scores < least
        if self.eos_id is not None:
            removed[:, self.eos_id] = False
        return scores.masked_fill(removed, -math.inf)


class ConsistentMinP(LogitsProcessor):
    """Keep tokens with p(v) >= min_p max p (Nguyen et al., arXiv 2407.01082), and EOS."""

    def __init__(self, min_p: float, eos_id: int | None):
        self.log_share, self.eos_id = math.log(min_p), eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        removed = scores < scores.amax(-1, keepdim=True) + self.log_share
        if self.eos_id is not None:
            removed[:, self.eos_id] = False
        return scores.masked_fill(removed, -math.inf)


class ConsistentTypical(LogitsProcessor):
    """Locally typical sampling (Meister et al., arXiv 2202.00666, equation 10), and EOS.

    Keeps the tokens whose information -log p is nearest to the entropy: the smallest set whose mass reaches typical_p.
    Among equally near tokens, those with lower ids come first.
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
    """Keep the smallest set of best tokens whose mass reaches top_p, and EOS (`eos_id` None: plain nucleus).

    Among equal tokens, those with lower ids come first.
    """

    def __init__(self, top_p: float, eos_id: int | None):
        self.top_p, self.eos_id = top_p, eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        probabilities = scores.softmax(-1)
        ordered = _largest(probabilities, NUCLEUS_SEARCH_TOKENS)
        mass = ordered.cumsum(-1)
        if bool((mass[:, -1] < self.top_p).any()):
            ordered = _largest(probabilities, scores.shape[-1])
            mass = ordered.cumsum(-1)
        last = ordered.shape[-1] - 1
        # index of the last token of the nucleus in `ordered`
        needed = torch.searchsorted(mass, mass.new_full((len(mass), 1), self.top_p)).clamp_max(last)
        least = ordered.gather(-1, needed)
        kept = probabilities >= least
        tied = (ordered.gather(-1, (needed + 1).clamp_max(last)) == least)[:, 0] & (needed[:, 0] < last)
        if bool(tied.any()) or (ordered.shape[-1] < scores.shape[-1] and bool((needed == last).any())):
            above, equal = probabilities > least, probabilities == least
            kept = above | (equal & (equal.cumsum(-1) <= needed + 1 - above.sum(-1, keepdim=True)))
        if self.eos_id is not None:
            kept[:, self.eos_id] = True
        return torch.where(kept, scores, -math.inf)


def _largest(x: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` largest values of each row in descending order; NumPy is ten times faster on the CPU."""
    count = min(count, x.shape[-1])
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.sort(descending=True).values[:, :count]
    return torch.from_numpy(np.sort(x.detach().numpy())[:, : -count - 1 : -1].copy())


def truncation(settings: ReplySettings, eos_id: int) -> LogitsProcessorList:
    """Return the truncation rules that the settings switch on, in the order top-k, nucleus, typical, min-p."""
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


def truncate(scores: torch.Tensor, settings: ReplySettings, eos_id: int) -> torch.Tensor:
    """Return the scores `[B, V]` after the truncation rules, -inf for removed tokens."""
    for rule in truncation(settings, eos_id):
        scores = rule(None, scores)
    return scores
