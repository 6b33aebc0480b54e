"""Truncation rules (top-k, top-p and others) for sampling; each rule also works in `generate()` of transformers.

Order of all decoding rules: banned tokens and words, rules against repetition, temperature, EOS floor, truncation.
Consistent truncation (Welleck et al., arXiv 2002.02492, definitions 4 and 5) keeps EOS among the candidates, so a
sampled reply ends with probability one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from chatbot.decoding.settings import ReplySettings

NUCLEUS_SEARCH_TOKENS = 1024
"""The nucleus is first sought among this many most likely tokens; only if it is larger, all tokens are sorted."""


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

    Keeps the tokens whose information -log p is nearest to the entropy: the smallest set whose mass reaches typical_p,
    but at least one token, because in float32 a typical_p below 1e-45 is 0. Among equally near tokens, those with lower
    ids come first.
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
        needed[:, 0] = True
        is_kept = torch.zeros_like(needed).scatter(-1, order, needed)
        if self.eos_id is not None:
            is_kept[:, self.eos_id] = True
        return scores.masked_fill(~is_kept, -math.inf)


class ConsistentTopP(LogitsProcessor):
    """Keep the fewest most likely tokens whose mass reaches top_p, and EOS (`eos_id` None: the plain nucleus).

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
        is_kept = probabilities >= least
        tied = (ordered.gather(-1, (needed + 1).clamp_max(last)) == least)[:, 0] & (needed[:, 0] < last)
        if bool(tied.any()) or (ordered.shape[-1] < scores.shape[-1] and bool((needed == last).any())):
            above, equal = probabilities > least, probabilities == least
            is_kept = above | (equal & (equal.cumsum(-1) <= needed + 1 - above.sum(-1, keepdim=True)))
        if self.eos_id is not None:
            is_kept[:, self.eos_id] = True
        return torch.where(is_kept, scores, -math.inf)


class ConsistentTopNSigma(LogitsProcessor):
    """Keep tokens with l(v) >= max l - n sigma (Tang et al., arXiv 2411.07641, equation 5), and EOS.

    sigma is the standard deviation of the logits of all allowed tokens, so the rule must run before the other
    truncation rules. Its result does not depend on the temperature.
    """

    def __init__(self, top_n_sigma: float, eos_id: int | None):
        self.top_n_sigma, self.eos_id = top_n_sigma, eos_id

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        forbidden = scores == -math.inf
        count = (~forbidden).sum(-1, keepdim=True)
        mean = scores.masked_fill(forbidden, 0).sum(-1, keepdim=True) / count
        sigma = ((scores - mean).masked_fill(forbidden, 0).square().sum(-1, keepdim=True) / count).sqrt()
        removed = scores < scores.amax(-1, keepdim=True) - self.top_n_sigma * sigma
        if self.eos_id is not None:
            removed[:, self.eos_id] = False
        return scores.masked_fill(removed, -math.inf)


class ConsistentXtc(LogitsProcessor):
    """XTC ("exclude top choices", p-e-w, github.com/oobabooga/text-generation-webui, pull request 6335), without EOS.

    With the given probability, a step leaves out all tokens with p(v) >= threshold except the least likely of them. The
    rule applies only to words, that is, tokens other than EOS: EOS is never left out and keeps its probability, because
    the mass of the tokens that are left out is given to the other words. So the EOS floor still holds, and the rule
    does not change how long replies are. (The original does nothing in a step in which it would leave out EOS, and
    raises p(EOS) in all other steps.)

    Args:
        probability: Probability that the rule applies in a step.
        threshold: Minimum probability of a token that may be left out.
        eos_id: Id of EOS; None treats it as any other token.
        draws: A random number in [0, 1) for each row; default: torch's.
    """

    def __init__(self, probability: float, threshold: float, eos_id: int | None, draws: Sequence[float] | None = None):
        self.probability, self.threshold, self.eos_id, self.draws = probability, threshold, eos_id, draws

    def __call__(self, input_ids: torch.Tensor | None, scores: torch.Tensor) -> torch.Tensor:
        draws = torch.rand(len(scores)) if self.draws is None else torch.tensor(self.draws, dtype=torch.float64)
        log_p = scores.log_softmax(-1)
        choices = (log_p.exp() >= self.threshold) & (scores > -math.inf)
        words = torch.ones_like(choices)
        if self.eos_id is not None:
            choices[:, self.eos_id] = words[:, self.eos_id] = False
        least = log_p.masked_fill(~choices, math.inf).argmin(-1, keepdim=True)
        removed = choices.scatter(-1, least, False)  # of equal tokens, the first stays
        changed = (draws < self.probability).to(scores.device) & removed.any(-1)
        remaining = log_p.masked_fill(removed, -math.inf)
        gain = log_p.masked_fill(~words, -math.inf).logsumexp(-1) - remaining.masked_fill(~words, -math.inf).logsumexp(
            -1
        )
        return torch.where(changed[:, None], torch.where(words, remaining + gain[:, None], remaining), scores)


def _largest(x: torch.Tensor, count: int) -> torch.Tensor:
    """Return the `count` largest values of each row in descending order; NumPy is ten times faster on the CPU."""
    count = min(count, x.shape[-1])
    if x.device.type != "cpu" or x.dtype not in (torch.float32, torch.float64):
        return x.sort(descending=True).values[:, :count]
    return torch.from_numpy(np.sort(x.detach().numpy())[:, : -count - 1 : -1].copy())


def truncation(settings: ReplySettings, eos_id: int, draws: Sequence[float] | None = None) -> LogitsProcessorList:
    """Return the truncation rules that are on, in the order top-n-sigma, top-k, nucleus, typical, min-p, XTC.

    Args:
        settings: Decoding settings.
        eos_id: Id of the end of turn.
        draws: Random numbers of `ConsistentXtc`.
    """
    protected_id = eos_id if settings.keep_eos else None
    rules = LogitsProcessorList()
    if settings.method == "sample" and settings.top_n_sigma > 0:
        rules.append(ConsistentTopNSigma(settings.top_n_sigma, protected_id))
    if settings.method == "sample" and settings.top_k:
        rules.append(ConsistentTopK(settings.top_k, protected_id))
    if settings.method == "sample" and settings.top_p < 1:
        rules.append(ConsistentTopP(settings.top_p, protected_id))
    if settings.method == "sample" and settings.typical_p < 1:
        rules.append(ConsistentTypical(settings.typical_p, protected_id))
    if settings.method == "sample" and settings.min_p > 0:
        rules.append(ConsistentMinP(settings.min_p, protected_id))
    if settings.method == "sample" and settings.xtc_probability > 0:
        rules.append(ConsistentXtc(settings.xtc_probability, settings.xtc_threshold, protected_id, draws))
    return rules


def truncate(
    scores: torch.Tensor, settings: ReplySettings, eos_id: int, draws: Sequence[float] | None = None
) -> torch.Tensor:
    """Return the scores `[B, V]` after the truncation rules, -inf for removed tokens; `draws` as for `truncation`."""
    for rule in truncation(settings, eos_id, draws):
        scores = rule(None, scores)
    return scores


def drawn_from(scores: torch.Tensor, settings: ReplySettings, eos_id: int) -> torch.Tensor:
    """Return the probabilities `[B, V]` that tokens have after the truncation rules, before XTC's random choice is made."""
    always = truncate(scores, settings, eos_id, [0.0] * len(scores)).softmax(-1)
    if settings.method != "sample" or not 0 < settings.xtc_probability < 1:
        return always
    never = truncate(scores, settings, eos_id, [1.0] * len(scores)).softmax(-1)
    return torch.lerp(never, always, settings.xtc_probability)
