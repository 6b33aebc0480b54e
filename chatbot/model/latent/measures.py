"""Measures of a trained latent: does z contain information about the reply, and does the model use it?

Nats of replies with z from q, with the z of another reply, with z from the prior and with z = 0; active units and IWAE
bound (Burda et al., arXiv 1509.00519); mutual information of reply and z (Hoffman & Johnson 2016). Dims: N replies, Z
size of the latent, K codes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from chatbot.model.latent.gaussian import Normal, kl_per_dimension
from chatbot.model.latent.loss import (
    Encoded,
    LossWeights,
    code_costs,
    encode,
    latent_of,
    posterior_of,
    reply_nats,
    sum_by_reply,
)
from chatbot.model.latent.replies import Replies, choose_replies
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.scoring import pack_whole
from chatbot.text.layouts import Layout

ACTIVE_VARIANCE = 0.01
"""A dimension is active (Burda et al., section 5.2) if the variance of its whitened means over the replies is larger
than this."""

USED_SHARE = 0.005
"""A code is used if at least this share of the replies has it."""

ROW_TOKENS = 1024
POSITIONS = 8
"""Number of token positions of a reply for which the gain is reported."""

Batch = tuple[dict[str, torch.Tensor], Replies]


@dataclass(frozen=True)
class LatentMeasures:
    """Measures over N replies. A unit (nats/unit) is a character or an end of turn of a reply.

    Attributes:
        base: nats/unit with z = 0.
        with_z: nats/unit with the reply's own z.
        shuffled: nats/unit with the whitened z of another reply, or with its code if z is discrete.
        from_prior: nats/unit with z from the prior.
        bound: nats/unit of the evidence bound: `with_z` plus the divergence.
        divergence: KL(q||p), or -log p(k|c), nats per reply.
        kl: Mean KL of every dimension; a single value with discrete z.
        active_units: Number of active dimensions; with discrete z the number of used codes.
        mutual_information: I(reply; z), nats; with discrete z the mean of KL(p(k|c,r)||p(k|c)).
        gain_by_position: Nats per token that the reply's own z saves compared with a shuffled z, at the first positions
            of the replies.
    """

    base: float
    with_z: float
    shuffled: float
    from_prior: float
    bound: float
    divergence: float
    kl: tuple[float, ...]
    active_units: int
    mutual_information: float
    gain_by_position: tuple[float, ...]

    @property
    def shuffle_cost(self) -> float:
        """Increase of nats/unit if a reply gets the z of another reply; near 0, the model ignores z."""
        return self.shuffled - self.with_z


def reply_batches(layout: Layout, dialogues: Sequence[Sequence[Sequence[int]]], device: torch.device) -> list[Batch]:
    """Pack the dialogues of at least two turns, each with its last reply, into batches of one row."""
    samples = [layout.lay_out(turns) for turns in dialogues if len(turns) > 1]
    batches = []
    for row in pack_whole(samples, ROW_TOKENS):
        parts = [samples[index] for index in row]
        values = {
            "input_ids": [token for part in parts for token in part.input_ids],
            "token_type_ids": [speaker for part in parts for speaker in part.speaker_ids],
            "labels": [label for part in parts for label in part.labels],
            "segment_ids": [number for number, part in enumerate(parts) for _ in part.input_ids],
        }
        batch = {name: torch.tensor([column], device=device) for name, column in values.items()}
        batches.append((batch, choose_replies(batch, layout.end_of_turn_id, last=True)))
    return batches


def reply_units(batches: Sequence[Batch], units: Callable[[list[int]], int]) -> int:
    """Return the total number of units of all replies; `units` returns the number for the token ids of one turn."""
    return sum(
        units(batch["input_ids"][row, context + 1 : end].tolist())
        for batch, replies in batches
        for row, context, end in zip(replies.rows, replies.contexts, replies.ends, strict=True)
    )


@torch.no_grad()
def measure(model: XianliaoForCausalLM, batches: Sequence[Batch], units: int, seed: int = 0) -> LatentMeasures:
    """Return the measures of a model with a latent.

    Args:
        model: The model, in evaluation mode.
        batches: See `reply_batches`; at least two replies.
        units: See `reply_units`.
        seed: Seed of the samples of z.
    """
    latent, generator = latent_of(model), torch.Generator().manual_seed(seed)
    encoded = [encode(model, batch, replies) for batch, replies in batches]
    sizes = [len(replies) for _, replies in batches]

    if latent.is_discrete:
        assert latent.codes is not None
        costs = _joined_costs(model, batches, encoded)
        best_codes, divergence, information = _code_statistics(costs, model, encoded)
        kl: tuple[float, ...] = (information,)
        used = torch.bincount(best_codes, minlength=costs.shape[1]) >= max(1.0, USED_SHARE * len(best_codes))
        active = int(used.sum())
        prior_codes = torch.cat([latent.log_code_prior(e.context) for e in encoded]).exp().cpu()
        drawn = torch.multinomial(prior_codes, 1, generator=generator)[:, 0].to(best_codes.device)
        choices = {
            name: latent.codes.weight[c]
            for name, c in (("z", best_codes), ("shuffled", best_codes.roll(1)), ("prior", drawn))
        }
    else:
        pairs = [posterior_of(model, e) for e in encoded]
        q, p = (Normal(*map(torch.cat, zip(*part, strict=True))) for part in zip(*pairs, strict=True))
        white = q.whitened_by(p)
        noise = torch.randn(2, *q.mean.shape, generator=generator).to(q.mean)
        w = white.at(noise[0])
        per_dimension = kl_per_dimension(q, p)
        divergence, kl = per_dimension.sum(1).mean().item(), tuple(per_dimension.mean(0).tolist())
        active = int((white.mean.var(0) > ACTIVE_VARIANCE).sum())
        information = mutual_information(white, w)
        choices = {"z": p.at(w), "shuffled": p.at(w.roll(1, 0)), "prior": p.at(noise[1])}

    nats = {name: _nats(model, batches, sizes, z) for name, z in {"base": None, **choices}.items()}
    totals = {name: sum(part.sum().item() for part in parts) / units for name, parts in nats.items()}
    gains = [b - a for a, b in zip(nats["z"], nats["shuffled"], strict=True)]
    return LatentMeasures(
        base=totals["base"],
        with_z=totals["z"],
        shuffled=totals["shuffled"],
        from_prior=totals["prior"],
        bound=totals["z"] + divergence * sum(sizes) / units,
        divergence=divergence,
        kl=kl,
        active_units=active,
        mutual_information=information,
        gain_by_position=_by_position(batches, gains),
    )


def mutual_information(q: Normal, samples: torch.Tensor) -> float:
    """Return an estimate of I(reply; z) = E log q(z_i|i) - log mean_j q(z_i|j), nats; at most log N.

    Args:
        q: The N posteriors, in whitened coordinates.
        samples: A sample of each, `[N, Z]`.
    """
    joint = q.log_density(samples[:, None])  # [N, N]: sample i under posterior j
    marginal = joint.logsumexp(1) - math.log(len(samples))
    return (joint.diagonal() - marginal).mean().item()


@torch.no_grad()
def iwae_nats(model: XianliaoForCausalLM, batches: Sequence[Batch], samples: int = 50, seed: int = 0) -> float:
    """Return the sum over the replies of -log (1/S) sum_s p(r|c,z_s) p(z_s|c) / q(z_s|c,r), nats.

    With discrete z the sum over all codes is exact.
    """
    latent, generator, total = latent_of(model), torch.Generator().manual_seed(seed), 0.0
    for batch, replies in batches:
        encoded = encode(model, batch, replies)
        if latent.is_discrete:
            total -= (-code_costs(model, batch, replies, encoded, LossWeights())).logsumexp(1).sum().item()
            continue
        q, p = posterior_of(model, encoded)
        logs = []
        for _ in range(samples):
            z = q.at(torch.randn(q.mean.shape, generator=generator).to(q.mean))
            log_p = -sum_by_reply(reply_nats(model, batch, replies, z), replies)
            logs.append(log_p + p.log_density(z) - q.log_density(z))
        total -= (torch.stack(logs).logsumexp(0) - math.log(samples)).sum().item()
    return total


def _nats(
    model: XianliaoForCausalLM, batches: Sequence[Batch], sizes: Sequence[int], z: torch.Tensor | None
) -> list[torch.Tensor]:
    parts = [None] * len(sizes) if z is None else z.split(list(sizes))
    return [reply_nats(model, *batch, part) for batch, part in zip(batches, parts, strict=True)]


def _joined_costs(model: XianliaoForCausalLM, batches: Sequence[Batch], encoded: Sequence[Encoded]) -> torch.Tensor:
    """Return -log p(r|c,k) - log p(k|c) of every reply and code, `[N, K]`."""
    pairs = zip(batches, encoded, strict=True)
    return torch.cat([code_costs(model, batch, replies, e, LossWeights()) for (batch, replies), e in pairs])


def _code_statistics(
    costs: torch.Tensor, model: XianliaoForCausalLM, encoded: Sequence[Encoded]
) -> tuple[torch.Tensor, float, float]:
    """Return the best code of each reply, the mean of its -log p(k|c), and the mean of KL(p(k|c,r)||p(k|c))."""
    best_codes = costs.argmin(1)
    log_prior = torch.cat([latent_of(model).log_code_prior(e.context) for e in encoded])
    log_q = (-costs).log_softmax(1)
    kl = (log_q.exp() * (log_q - log_prior)).sum(1).mean().item()
    return best_codes, -log_prior.gather(1, best_codes[:, None]).mean().item(), kl


def _by_position(batches: Sequence[Batch], gains: Sequence[torch.Tensor]) -> tuple[float, ...]:
    sums, counts = torch.zeros(POSITIONS), torch.zeros(POSITIONS)
    for (_, replies), gain in zip(batches, gains, strict=True):
        owners = replies.carrier[replies.carrier >= 0]
        flat = (replies.carrier >= 0).nonzero()[:, 1]
        position = (flat - replies.contexts[owners]).cpu()
        is_counted = position < POSITIONS
        sums.index_add_(0, position[is_counted], gain.float().cpu()[is_counted])
        counts.index_add_(0, position[is_counted], torch.ones(int(is_counted.sum())))
    return tuple((sums / counts.clamp_min(1)).tolist())
