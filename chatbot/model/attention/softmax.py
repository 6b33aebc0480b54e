"""Softmax attention (Vaswani et al., arXiv 1706.03762, eq. 1), over all earlier tokens or over a sliding window.

    o_i = sum_{j in window(i)} softmax_j(q_i.k_j / sqrt K) v_j

Without a window, the state holds the keys and values of all tokens, so it grows with the text. With a sliding window,
it holds those of the last `sliding_window` tokens, so its size and the time of a step stay constant. Positions are
rotary (arXiv 2104.09864) if `positions` is `rope`.

Dims: B batch, T new tokens, S remembered and new tokens, H heads, K head width, W window.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F

from chatbot.model.attention.mixer import Form, Mixer, rotary
from chatbot.model.attention.tokens import Tokens, visible_keys
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState


def naive(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Compute the definition, one position at a time, reading only keys at or before it.

    Args:
        q: `[B, T, H, K]`.
        k, v: `[B, S, H, K]`; query i has the position of key S - T + i.
        visible: bool `[B or 1, T, S]`.

    Returns:
        `[B, T, H, V]`; zero where no key is visible.
    """
    offset = k.shape[1] - q.shape[1]
    outputs = []
    for i in range(q.shape[1]):
        past = slice(0, offset + i + 1)
        scores = at_least_float(torch.einsum("bhk,bjhk->bhj", q[:, i], k[:, past])) / math.sqrt(q.shape[-1])
        mask = visible[:, i, None, past]
        weights = scores.masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0)
        outputs.append(torch.einsum("bhj,bjhv->bhv", weights.to(v.dtype), v[:, past]))
    return torch.stack(outputs, 1)


def parallel(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, visible: torch.Tensor | None) -> torch.Tensor:
    """Compute `naive` with torch's scaled_dot_product_attention.

    `visible` None means plain causal attention, or all keys for a single query.
    """
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    if visible is None:
        return F.scaled_dot_product_attention(q, k, v, is_causal=q.shape[2] > 1).transpose(1, 2)
    # A padding query without visible keys attends to all keys: its output is not used, but it must not be NaN.
    visible = (visible | ~visible.any(-1, keepdim=True))[:, None]
    return F.scaled_dot_product_attention(q, k, v, attn_mask=visible).transpose(1, 2)


WIDE_BLOCK = 1024
"""Windows up to this length have blocks of full length even for short texts, so that all sums round in the same way."""


def windowed(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, window: int, segments: torch.Tensor | None
) -> torch.Tensor:
    """Compute sliding-window attention without a past, in blocks of W queries that see their block and the one before.

    The cost grows with T * W instead of T * T.

    Args:
        q, k, v: `[B, T, H, K]`.
        window: W.
        segments: int `[B, T]`, index of the packed dialogue that each token belongs to, or None.

    Returns:
        `[B, T, H, V]`.
    """
    batch, length, *_ = q.shape
    window = min(window, max(length, WIDE_BLOCK))  # the same keys are visible, without blocks longer than the text
    padding = -length % window
    keep = F.pad(q.new_ones(batch, length, dtype=torch.bool), (window, padding))
    q = F.pad(q, (0, 0, 0, 0, 0, padding))
    k, v = (F.pad(x, (0, 0, 0, 0, window, padding)) for x in (k, v))
    blocks = q.shape[1] // window

    def pairs(x: torch.Tensor) -> torch.Tensor:  # [B, W + T, ...] -> each block and the one before it, [B * N, 2W, ...]
        x = x.unflatten(1, (blocks + 1, window))
        return torch.cat([x[:, :-1], x[:, 1:]], 2).flatten(0, 1)

    distance = torch.arange(window, device=q.device)[:, None] + window - torch.arange(2 * window, device=q.device)
    in_window = (distance >= 0) & (distance < window)
    query_segments = key_segments = None
    if segments is not None:
        padded = F.pad(segments, (window, padding), value=-1)
        query_segments = padded[:, window:].unflatten(1, (blocks, window)).flatten(0, 1)
        key_segments = pairs(padded)
    visible = visible_keys(query_segments, key_segments, pairs(keep), in_window)
    output = parallel(q.unflatten(1, (blocks, window)).flatten(0, 1), pairs(k), pairs(v), visible)
    return output.unflatten(0, (batch, blocks)).flatten(1, 2)[:, :length]


class _Keys(NamedTuple):
    """Remembered and new keys of a batch.

    Attributes:
        keys, values: `[B, S, H, K]`.
        keep: bool `[B, S]`, False at padding, or None.
        positions: int64 `[B, S]`, or None.
        segments: int `[B, S]`, or None.
    """

    keys: torch.Tensor
    values: torch.Tensor
    keep: torch.Tensor | None
    positions: torch.Tensor | None
    segments: torch.Tensor | None


class SoftmaxAttention(Mixer):
    """Multi-head softmax attention.

    Args:
        config: Sizes.
        window: Number of tokens that a query sees, itself included; `None` means all.
    """

    def __init__(self, config: XianliaoConfig, window: int | None = None):
        super().__init__(config)
        self.window, self.theta = window, config.rope_theta
        self.rotates = config.positions == "rope"
        self.needs_positions = self.rotates or window is not None
        self.growing = ("keys", "values") if window is None else ()

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        length = x.shape[1]
        q, k, v = self.project(x, tokens, state)
        if self.rotates:
            q, k = (rotary(part, tokens.known_positions, self.theta) for part in (q, k))
        if state is not None and self.growing and form == "auto":
            attended = state.attend(q, k, v, parallel)
            if attended is not None:
                return self.finish(x, attended)
        past = {} if state is None else state.tensors
        all_keys = self._with_past(k, v, tokens, past)
        without_past = all_keys.keep is None and "keys" not in past
        if form == "auto" and without_past and self.window is not None and length > 2 * self.window:
            output = windowed(q, k, v, self.window, all_keys.segments)
        else:
            visible = self._visible(tokens, all_keys, length)
            if form == "naive":
                if visible is None:
                    visible = torch.ones(1, length, all_keys.keys.shape[1], dtype=torch.bool, device=x.device)
                output = naive(q, all_keys.keys, all_keys.values, visible)
            else:
                output = parallel(q, all_keys.keys, all_keys.values, visible)
        if state is not None:
            self._remember(state, length, all_keys, tokens.keep is not None)
        return self.finish(x, output)

    def _with_past(self, k: torch.Tensor, v: torch.Tensor, tokens: Tokens, past: dict[str, torch.Tensor]) -> _Keys:
        """Join the remembered keys and the new ones."""
        keep, segments, positions = tokens.keep, tokens.segment_ids, tokens.positions
        if "keys" not in past:
            return _Keys(k, v, keep, positions, segments)
        remembered = past["keys"].shape[1]
        if keep is not None or "keep" in past:
            new = torch.ones(k.shape[:2], dtype=torch.bool, device=k.device) if keep is None else keep
            old = past.get("keep", torch.ones_like(new[:, :1]).expand(-1, remembered))
            keep = torch.cat([old, new], 1)
        if segments is not None:  # the remembered keys belong to the dialogue of the first token
            segments = torch.cat([segments[:, :1].expand(-1, remembered), segments], 1)
        if "positions" in past:
            positions = torch.cat([past["positions"], tokens.known_positions], 1)
        keys, values = torch.cat([past["keys"], k], 1), torch.cat([past["values"], v], 1)
        return _Keys(keys, values, keep, positions, segments)

    def _visible(self, tokens: Tokens, all_keys: _Keys, length: int) -> torch.Tensor | None:
        """Return which of S keys each of T queries sees, bool `[B or 1, T, S]`; `None` means all keys up to the query."""
        total = all_keys.keys.shape[1]
        window = total if self.window is None else self.window
        narrow = total > window
        if all_keys.segments is None and all_keys.keep is None and not narrow and length in (1, total):
            return None
        index = torch.arange(total, device=all_keys.keys.device)
        causal = index[total - length :, None] >= index
        visible = visible_keys(tokens.segment_ids, all_keys.segments, all_keys.keep, causal)
        if narrow:
            positions = all_keys.positions
            assert positions is not None  # needs_positions is true for every window
            visible = visible & (positions[:, -length:, None] - positions[:, None, :] < window)
        return visible

    def _remember(self, state: MixerState, length: int, all_keys: _Keys, is_padded: bool) -> None:
        """Store all keys, or exactly W keys with a window; a window that is not yet full begins with masked entries."""
        tensors = {"keys": all_keys.keys, "values": all_keys.values}
        keep = all_keys.keep
        if self.window is None:
            if keep is not None:
                tensors["keep"] = keep
            state.remember(length, **tensors)
            return
        if keep is None:
            keep = torch.ones(all_keys.keys.shape[:2], dtype=torch.bool, device=all_keys.keys.device)
        assert all_keys.positions is not None  # needs_positions is true for every window
        tensors |= {"positions": all_keys.positions, "keep": keep}
        missing = self.window - keep.shape[1]
        if missing > 0:
            tensors = {name: F.pad(x, (0, 0) * (x.ndim - 2) + (missing, 0)) for name, x in tensors.items()}
        elif is_padded:  # select the last W that are not padding; without new padding those are the last W
            order = keep.long().argsort(dim=1, stable=True)
            tensors = {
                name: x.gather(1, order[(...,) + (None,) * (x.ndim - 2)].expand_as(x)) for name, x in tensors.items()
            }
        tensors = {name: x[:, -self.window :] for name, x in tensors.items()}
        if length > 1:  # a view would keep the whole row in memory
            tensors = {name: x.clone() for name, x in tensors.items()}
        state.remember(length, **tensors)
