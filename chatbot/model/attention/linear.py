"""Linear attention mixers: feature maps with a denominator, and decays with a norm per head.

    o_i = phi(q_i)^T S_i / phi(q_i)^T z_i          S_i = sum_{j<=i} phi(k_j) v_j^T     z_i = sum_{j<=i} phi(k_j)

for the feature maps of `FEATURE_MAPS` (苏剑林, kexue.fm/archives/7546 and 7919; arXiv 2006.16236, eq. 9-11). o_i is a mean
of the values with weights phi(q_i).phi(k_j) > 0. Only the ratio of numerator and denominator matters, so a small
denominator does no harm; `divide` bounds a denominator of zero.

The kinds with decay have no denominator. q and k pass through SiLU as in TransNormer (arXiv 2210.10340), a norm of the
output per head replaces the denominator, and S decays at a rate per head, which is fixed or computed from the token.

Positions: decays need none. With `linear_rope`, the Taylor kinds rotate q and k before their feature map, which depends on
inner products only. `elu1` and `softmax_feat` rotate the mapped q and k, in the numerator alone (RoFormer, eq. 19).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init  # does not overwrite loaded weights

from chatbot.model.attention.mixer import Form, Mixer, rotary
from chatbot.model.attention.recurrence import recurrence
from chatbot.model.attention.tokens import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState

MIN_DENOMINATOR = 1e-30
"""Lower bound of a denominator, needed where every key is padding. Gradients contain 1 / bound, which still fits into
fp32."""

TAYLOR1_MARGIN = 1e-3
"""Added to 1 + cosine. At the antipode of a key 1 + cosine is rounding noise of either sign, about 1e-7 per token, and
noise divided by noise can exceed the largest value hundreds of times."""


def elu1(x: torch.Tensor) -> torch.Tensor:
    """Return elu(x) + 1 = exp(min(x, 0)) + max(x, 0).

    Computed as written on the left, exp(x) - 1 + 1 loses all digits of a small feature: in fp32 it is 0 from x = -17.4.
    """
    return x.clamp_max(0).exp() + F.relu(x)  # not clamp_min: its slope at 0 would be added to that of exp


def taylor1(x: torch.Tensor) -> torch.Tensor:
    """Return [sqrt(1 + margin); x / |x|], so that phi(q).phi(k) = 1 + margin + cos(q, k) > 0 (kexue.fm/archives/7546).

    The post has no margin; see `TAYLOR1_MARGIN`.
    """
    constant = torch.full_like(x[..., :1], math.sqrt(1 + TAYLOR1_MARGIN))
    return torch.cat([constant, F.normalize(x, dim=-1)], -1)


def taylor2(x: torch.Tensor) -> torch.Tensor:
    """Return [1; x; vec(x x^T) / sqrt 2]: phi(q).phi(k) = 1 + q.k + (q.k)^2 / 2 > 0 (kexue.fm/archives/7919)."""
    square = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, square], -1)


def softmax_features(x: torch.Tensor) -> torch.Tensor:
    """Return the softmax over the features."""
    return x.softmax(-1)


FEATURE_MAPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elu1": elu1,
    "softmax_feat": softmax_features,
    "taylor1": taylor1,
    "taylor2": taylor2,
}
"""Feature maps `[..., K]` -> `[..., phi(K)]` by the name of their mixer without `linear_`."""


def divide(numerator: torch.Tensor, denominator: torch.Tensor) -> torch.Tensor:
    """Return numerator `[..., V]` / denominator `[..., 1]` >= 0, in the numerator's dtype; 0 / 0 is 0."""
    bounded = at_least_float(denominator).clamp_min(MIN_DENOMINATOR)
    return (at_least_float(numerator) / bounded).to(numerator.dtype)


class FeatureMapAttention(Mixer):
    """Linear attention with a feature map and a denominator.

    Args:
        config: Sizes.
        feature_map: A name in `FEATURE_MAPS`. The state of `taylor2` grows with the square of the key width, so its
            keys have `config.taylor_key_dim`.
    """

    def __init__(self, config: XianliaoConfig, feature_map: str):
        super().__init__(config, config.taylor_key_dim if feature_map == "taylor2" else None)
        self.feature_map, self.map = feature_map, FEATURE_MAPS[feature_map]
        self.theta, self.chunk_size = config.rope_theta, config.chunk_size
        self.needs_positions = config.positions == "rope" and config.linear_rope

    def features(self, q: torch.Tensor, k: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """Return phi(q) and phi(k) of the numerator, then those of the denominator, each `[B, T, H, phi(K)]`.

        The two pairs are the same tensors unless rotary embeddings are applied after the map.
        """
        if self.feature_map == "taylor2":
            scale = self.key_dim**-0.25
            q, k = q * scale, k * scale
        before_map = self.needs_positions and self.feature_map.startswith("taylor")
        if before_map:
            q, k = (rotary(x, tokens.known_positions, self.theta) for x in (q, k))
        q, k = self.map(q), self.map(k)
        if tokens.keep is not None:
            k = k * tokens.keep[..., None, None]
        if not self.needs_positions or before_map:
            return q, k, q, k
        rotated_q, rotated_k = (rotary(x, tokens.known_positions, self.theta) for x in (q, k))
        return rotated_q, rotated_k, q, k

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        q, k, v = self.project(x, tokens, state)
        q, k, denominator_q, denominator_k = self.features(q, k, tokens)
        no_decay = torch.zeros(*v.shape[:2], 1, device=v.device)
        before = {} if state is None else state.tensors
        run = partial(
            recurrence, log_decay=no_decay, segment_ids=tokens.segment_ids, form=form, chunk_size=self.chunk_size
        )
        if q is denominator_q:  # one sum for both: the denominator is the numerator of a value that is always one
            sums, recurrent = run(q, k, F.pad(v, (0, 1), value=1.0), state=before.get("recurrent"))
            numerator, denominator = sums[..., :-1], sums[..., -1:]
            after = {"recurrent": recurrent}
        else:
            numerator, recurrent = run(q, k, v, state=before.get("recurrent"))
            ones = torch.ones_like(v[..., :1])
            denominator, normalizer = run(denominator_q, denominator_k, ones, state=before.get("normalizer"))
            after = {"recurrent": recurrent, "normalizer": normalizer}
        if state is not None:
            state.remember(x.shape[1], **after)
        return self.finish(x, divide(numerator, denominator))


class DecayedAttention(Mixer):
    """Linear attention with a decay and a norm per head, and SiLU on q and k.

    Args:
        config: Sizes.
        decay: `fixed`: one rate per head; `data`: rate times softplus of a projection of the input.
    """

    def __init__(self, config: XianliaoConfig, decay: Literal["fixed", "data"]):
        super().__init__(config)
        self.chunk_size, self.eps = config.chunk_size, config.layer_norm_eps
        self.gate_proj = nn.Linear(config.hidden_size, self.heads) if decay == "data" else None
        self.log_rate = nn.Parameter(torch.empty(self.heads), requires_grad=decay == "data")

    def init_weights(self, std: float) -> None:
        init_log_rate(self.log_rate)

    def log_decay(self, x: torch.Tensor) -> torch.Tensor:
        """Return g_t of `chatbot.model.attention.recurrence`: x `[B, T, D]` -> at least fp32 `[B, T, H]`, <= 0."""
        rate = at_least_float(self.log_rate).exp()
        if self.gate_proj is None:
            return -rate.expand(*x.shape[:2], -1)
        return -rate * F.softplus(at_least_float(self.gate_proj(x)))

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        q, k, v = self.project(x, tokens, state)
        q, k = F.silu(q), F.silu(k) * self.key_dim**-0.5
        log_decay = self.log_decay(x)
        if tokens.keep is not None:
            k = k * tokens.keep[..., None, None]
            log_decay = log_decay * tokens.keep[..., None]
        recurrent = None if state is None else state.tensors.get("recurrent")
        output, recurrent = recurrence(q, k, v, log_decay, tokens.segment_ids, recurrent, form, self.chunk_size)
        if state is not None:
            state.remember(x.shape[1], recurrent=recurrent)
        return self.finish(x, F.layer_norm(output, (self.head_dim,), eps=self.eps))


def init_log_rate(log_rate: nn.Parameter) -> None:
    """Set decay rates from 1/2 (a memory of about two tokens) to 1/512 (a whole dialogue), geometric over the heads."""
    init.copy_(log_rate, -math.log(2) * torch.linspace(1, 9, len(log_rate)))
