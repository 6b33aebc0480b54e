"""Softmax attention (Vaswani et al., arXiv 1706.03762, eq. 1), whole or over a sliding window.

    o_i = sum_{j in window(i)} softmax_j(q_i.k_j / sqrt K) v_j

The state is the keys and values: of all tokens, so it grows, or of the last `sliding_window` tokens, so that size and step
time stay constant. Positions are rotary (arXiv 2104.09864) when `positions` is `rope`.
Dims: B batch, T new tokens, S remembered and new ones, H heads, K head width, W window.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F

from chatbot.model.attention.mixer import Form, Mixer, Tokens, rotary
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState


def visible(
    query_segments: torch.Tensor | None, key_segments: torch.Tensor | None, keep: torch.Tensor | None, causal
) -> torch.Tensor:
    """Which keys each query sees: bool, broadcastable to `[B, T, S]`."""
    seen = causal[None]
    if query_segments is not None:
        seen = seen & (query_segments[:, :, None] == key_segments[:, None, :])
    if keep is not None:
        seen = seen & keep[:, None, :]
    return seen


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The definition, one position at a time, over its visible past only.

    Args:
        q: `[B, T, H, K]`.
        k, v: `[B, S, H, K]`; query i stands at key S - T + i.
        seen: bool `[B or 1, T, S]`.

    Returns:
        `[B, T, H, V]`; zero where nothing is seen.
    """
    offset = k.shape[1] - q.shape[1]
    outputs = []
    for i in range(q.shape[1]):
        past = slice(0, offset + i + 1)
        scores = at_least_float(torch.einsum("bhk,bjhk->bhj", q[:, i], k[:, past])) / math.sqrt(q.shape[-1])
        mask = seen[:, i, None, past]
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0)
        outputs.append(torch.einsum("bhj,bjhv->bhv", weights.to(v.dtype), v[:, past]))
    return torch.stack(outputs, 1)


def parallel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None) -> torch.Tensor:
    """`naive` through torch's scaled_dot_product_attention; `None` is plain causal, or all keys for one query."""
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if seen is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2)
    # A query that sees nothing (padding) sees everything instead: its output is not used, and it must not be NaN.
    seen = (seen | ~seen.any(-1, keepdim=True))[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=seen).transpose(1, 2)


def windowed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, segments: torch.Tensor | None
) -> torch.Tensor:
    """Sliding-window attention without a past, in blocks of `window` queries that see their own and the last block.

    The cost grows with T * W, not T * T. q, k, v `[B, T, H, K]`, segments `[B, T]` or None.
    """
    batch, length, *_ = q.shape
    padding = -length % window
    keep = F.pad(q.new_ones(batch, length, dtype=torch.bool), (window, padding))
    q = F.pad(q, (0, 0, 0, 0, 0, padding))
    k, v = (F.pad(x, (0, 0, 0, 0, window, padding)) for x in (k, v))
    blocks = q.shape[1] // window

    def pairs(x: torch.Tensor) -> torch.Tensor:  # [B, W + T, ...] -> [B * N, 2W, ...]
        x = x.unflatten(1, (blocks + 1, window))
        return torch.cat([x[:, :-1], x[:, 1:]], 2).flatten(0, 1)

    distance = torch.arange(window, device=q.device)[:, None] + window - torch.arange(2 * window, device=q.device)
    near = (distance >= 0) & (distance < window)
    before = None
    if segments is not None:
        before = F.pad(segments, (window, padding), value=-1)
        segments = before[:, window:].unflatten(1, (blocks, window)).flatten(0, 1)
        before = pairs(before)
    seen = visible(segments, before, pairs(keep), near)
    output = parallel(q.unflatten(1, (blocks, window)).flatten(0, 1), pairs(k), pairs(v), seen)
    return output.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]


class SoftmaxAttention(Mixer):
    """Multi-head softmax attention.

    Args:
        config: Sizes.
        window: Tokens that a query sees, itself included; `None` is all.
    """

    def __init__(self, config: XianliaoConfig, window: int | None = None):
        super().__init__(config)
        self.window, self.theta = window, config.rope_theta
        self.rotates = config.positions == "rope"
        self.needs_positions = self.rotates or window is not None

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        length = x.shape[1]
        q, k, v = self.project(x, tokens, state)
        if self.rotates:
            q, k = (rotary(part, tokens.positions, self.theta) for part in (q, k))
        past = {} if state is None else state.tensors
        keys, values, keep, positions, segments = self._with_past(k, v, tokens, past)
        if (
            form == "auto"
            and "keys" not in past
            and self.window is not None
            and length > 2 * self.window
            and keep is None
        ):
            output = windowed(q, k, v, self.window, segments)
        else:
            seen = self._visible(tokens, keep, positions, segments, length, keys.shape[1], x.device)
            if form == "naive":
                output = naive(
                    q, keys, values, keys.new_ones(1, length, keys.shape[1]).bool() if seen is None else seen
                )
            else:
                output = parallel(q, keys, values, seen)
        if state is not None:
            self._remember(state, length, keys, values, keep, positions)
        return self.finish(x, output)

    def _with_past(self, k, v, tokens: Tokens, past: dict[str, torch.Tensor]):
        """Keys, values, keep, positions and segments `[B, S, ...]` of what is remembered and of what is new."""
        keep, segments, positions = tokens.keep, tokens.segment_ids, tokens.positions
        if "keys" not in past:
            return k, v, keep, positions, segments
        remembered = past["keys"].shape[1]
        if keep is not None or "keep" in past:
            new = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device) if keep is None else keep
            old = past.get("keep", torch.ones_like(new[:, :1]).expand(-1, remembered))
            keep = torch.cat([old, new], 1)
        if segments is not None:  # what is remembered is of the first token's dialogue
            segments = torch.cat([segments[:, :1].expand(-1, remembered), segments], 1)
        if "positions" in past:
            positions = torch.cat([past["positions"], positions], 1)
        return torch.cat([past["keys"], k], 1), torch.cat([past["values"], v], 1), keep, positions, segments

    def _visible(self, tokens: Tokens, keep, positions, segments, length: int, total: int, device):
        """Which of S keys each of T queries sees, bool `[B or 1, T, S]`; `None` is all before it."""
        narrow = self.window is not None and total > self.window
        if segments is None and keep is None and not narrow and length in (1, total):
            return None
        places = torch.arange(total, device=device)
        seen = visible(tokens.segment_ids, segments, keep, places[total - length :, None] >= places)
        if narrow:
            seen = seen & (positions[:, -length:, None] - positions[:, None, :] < self.window)
        return seen

    def _remember(self, state: MixerState, length: int, keys, values, keep, positions) -> None:
        """Keeps all keys, or exactly the window's: a window not yet full begins with places that nobody sees."""
        tensors = {"keys": keys, "values": values}
        if self.window is not None:
            if keep is None:
                keep = torch.ones(keys.shape[:2], dtype=torch.bool, device=keys.device)
            tensors |= {"positions": positions, "keep": keep}
            missing = self.window - keys.shape[1]
            if missing > 0:
                tensors = {name: F.pad(x, (0, 0) * (x.ndim - 2) + (missing, 0)) for name, x in tensors.items()}
            elif not keep.all():  # the last ones that are not padding
                order = keep.long().argsort(dim=1, stable=True)
                tensors = {
                    name: x.gather(1, order[(...,) + (None,) * (x.ndim - 2)].expand_as(x))
                    for name, x in tensors.items()
                }
            tensors = {name: x[:, -self.window :] for name, x in tensors.items()}
            if length > 1:  # not a view that holds the whole row
                tensors = {name: x.clone() for name, x in tensors.items()}
        elif keep is not None:
            tensors["keep"] = keep
        state.remember(length, **tensors)
