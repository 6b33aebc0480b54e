"""Linear attention mixers: feature maps with a denominator, and decays with a norm per head.

    o_i = phi(q_i)^T S_i / (phi(q_i)^T z_i + 1e-6)     S_i = sum_{j<=i} phi(k_j) v_j^T     z_i = sum_{j<=i} phi(k_j)

for the feature maps of `FEATURE_MAPS` (苏剑林, kexue.fm/archives/7546 and 7919; arXiv 2006.16236, eq. 9-11). The decayed
kinds have no denominator: q and k go through SiLU as in TransNormer (arXiv 2210.10340), whose normalisation of the output
per head stands for it, and S forgets at a rate per head, fixed or computed from the token.

Positions: decays need none. With `linear_rope`, rotary embeddings go into q and k before the feature map for the Taylor
kinds, whose map only sees inner products, and after it, in the numerator alone, for `elu1` and `softmax_feat` (RoFormer,
eq. 19).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init  # leaves alone what was loaded

from chatbot.model.attention.mixer import Form, Mixer, Tokens, rotary
from chatbot.model.attention.recurrence import recurrence
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState

EPSILON = 1e-6


def taylor1(x: torch.Tensor) -> torch.Tensor:
    """[1; x / |x|], so that phi(q).phi(k) = 1 + cos(q, k) >= 0 (kexue.fm/archives/7546)."""
    return torch.cat([torch.ones_like(x[..., :1]), F.normalize(x, dim=-1)], -1)


def taylor2(x: torch.Tensor) -> torch.Tensor:
    """[1; x; vec(x x^T) / sqrt 2], so that phi(q).phi(k) = 1 + q.k + (q.k)^2 / 2 > 0 (kexue.fm/archives/7919)."""
    square = (x[..., :, None] * x[..., None, :]).flatten(-2) * 0.5**0.5
    return torch.cat([torch.ones_like(x[..., :1]), x, square], -1)


FEATURE_MAPS: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "elu1": lambda x: F.elu(x) + 1,
    "softmax_feat": lambda x: x.softmax(-1),
    "taylor1": taylor1,
    "taylor2": taylor2,
}


class FeatureMapAttention(Mixer):
    """Linear attention with a feature map and a denominator.

    Args:
        config: Sizes.
        feature_map: A name in `FEATURE_MAPS`. The state of `taylor2` grows with the square of the key width, so its
            keys are `config.taylor_key_dim` wide.
    """

    def __init__(self, config: XianliaoConfig, feature_map: str):
        super().__init__(config, config.taylor_key_dim if feature_map == "taylor2" else None)
        self.feature_map, self.map = feature_map, FEATURE_MAPS[feature_map]
        self.theta, self.chunk_size = config.rope_theta, config.chunk_size
        self.needs_positions = config.positions == "rope" and config.linear_rope

    def features(self, q: torch.Tensor, k: torch.Tensor, tokens: Tokens) -> tuple[torch.Tensor, ...]:
        """q and k of the numerator, then of the denominator (the same ones unless they are rotated after the map), each
        `[B, T, H, phi(K)]`."""
        scale = self.key_dim**-0.25
        q, k = (q * scale, k * scale) if self.feature_map == "taylor2" else (q, k)
        rotates = self.needs_positions
        if rotates and self.feature_map.startswith("taylor"):
            q, k = (rotary(x, tokens.positions, self.theta) for x in (q, k))
            rotates = False
        q, k = self.map(q), self.map(k)
        if tokens.keep is not None:
            k = k * tokens.keep[..., None, None]
        return *((rotary(x, tokens.positions, self.theta) for x in (q, k)) if rotates else (q, k)), q, k

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        q, k, v = self.project(x, tokens, state)
        q, k, q_below, k_below = self.features(q, k, tokens)
        still = torch.zeros(*v.shape[:2], 1, device=v.device)  # log decay 0: nothing is forgotten
        carried = {} if state is None else state.tensors
        options = {"form": form, "segment_ids": tokens.segment_ids, "chunk_size": self.chunk_size}
        if q is q_below:  # one sum for both: the denominator is the numerator of a value that is always one
            output, recurrent = recurrence(
                q, k, F.pad(v, (0, 1), value=1.0), still, state=carried.get("recurrent"), **options
            )
            above, below = output[..., :-1], output[..., -1:]
            fresh = {"recurrent": recurrent}
        else:
            above, recurrent = recurrence(q, k, v, still, state=carried.get("recurrent"), **options)
            ones = torch.ones_like(v[..., :1])
            below, normalizer = recurrence(q_below, k_below, ones, still, state=carried.get("normalizer"), **options)
            fresh = {"recurrent": recurrent, "normalizer": normalizer}
        if state is not None:
            state.remember(x.shape[1], **fresh)
        return self.finish(x, above / (below + EPSILON))


class DecayedAttention(Mixer):
    """Linear attention that forgets: SiLU on q and k, a decay per head, a norm per head.

    Args:
        config: Sizes.
        decay: `fixed`, one rate a head; `data`, rate times softplus of a projection of the input.
    """

    def __init__(self, config: XianliaoConfig, decay: Literal["fixed", "data"]):
        super().__init__(config)
        self.chunk_size, self.eps = config.chunk_size, config.layer_norm_eps
        self.gate_proj = nn.Linear(config.hidden_size, self.heads) if decay == "data" else None
        self.log_rate = nn.Parameter(torch.empty(self.heads), requires_grad=decay == "data")

    def init_weights(self, std: float) -> None:
        init_log_rate(self.log_rate)

    def log_decay(self, x: torch.Tensor) -> torch.Tensor:
        """g_t of `chatbot.model.attention.recurrence`: x `[B, T, D]` -> fp32 `[B, T, H]`, <= 0."""
        rate = at_least_float(self.log_rate).exp()
        if self.gate_proj is None:
            return -rate.expand(*x.shape[:2], -1)
        return -rate * F.softplus(at_least_float(self.gate_proj(x)))

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        q, k, v = self.project(x, tokens, state)
        q, k = F.silu(q), F.silu(k) * self.key_dim**-0.5
        log_decay = self.log_decay(x)
        if tokens.keep is not None:
            k = k * tokens.keep[..., None, None]
            log_decay = log_decay * tokens.keep[..., None]
        carried = None if state is None else state.tensors.get("recurrent")
        output, carried = recurrence(
            q, k, v, log_decay, tokens.segment_ids, carried, form=form, chunk_size=self.chunk_size
        )
        if state is not None:
            state.remember(x.shape[1], recurrent=carried)
        return self.finish(x, F.layer_norm(output, (self.head_dim,), eps=self.eps))


def init_log_rate(log_rate: nn.Parameter) -> None:
    """Rates from 1/2 (forgets in a word) to 1/512 (keeps the whole dialogue), geometric over the heads."""
    init.copy_(log_rate, -math.log(2) * torch.linspace(1, 9, len(log_rate)))
