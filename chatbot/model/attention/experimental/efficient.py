"""Efficient attention (Shen et al., arXiv 1812.01243), in a causal form.

Equation 3 of the paper, softmax_d(Q) softmax_n(K)^T V, normalises each key channel over all positions, including future
ones. As published, it therefore leaks the future, as a test shows. The causal form normalises over the past alone,

    o_i = sum_c softmax_d(q_i)_c (sum_{j<=i} e^{k_jc} v_j) / (sum_{j<=i} e^{k_jc})

The state is, per channel c, the weighted mean of the values and L_c = log sum_{j<=i} e^{k_jc}: no weight exceeds one,
so no key overflows. The chunked form uses the same differences k_jc - L_ic. Its chunks are short, because their
weights take [C, C, K] numbers. Dims as in `chatbot.model.attention.recurrence`.
"""

from __future__ import annotations

import torch

from chatbot.model.attention.mixer import Form, Mixer
from chatbot.model.attention.tokens import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState

CHUNK = 16
MASKED_KEY = -1e30
"""A key with weight zero; finite, because log-sum-exp of infinities has no gradient."""

State = tuple[torch.Tensor, torch.Tensor]
"""Weighted means of the values `[B, H, K, V]` and L of the module docstring `[B, H, K]`, both at least fp32."""


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: State | None = None,
) -> tuple[torch.Tensor, State]:
    """Compute the definition, one position at a time.

    Args:
        q, k: `[B, T, H, K]`; a key of `MASKED_KEY` is padding.
        v: `[B, T, H, V]`.
        segment_ids: int `[B, T]`, non-decreasing: index of each token's packed dialogue. `None` is one dialogue per
            row.
        state: State before the first token; `None` means an empty state.

    Returns:
        o `[B, T, H, V]` and the state after the last token.
    """
    mean, level = state if state is not None else _empty(q, v)
    outputs, now, last = [], level, mean
    for i in range(q.shape[1]):
        keys, values = at_least_float(k[:, : i + 1]), at_least_float(v[:, : i + 1])  # [B, i+1, H, K]
        before = level
        if segment_ids is not None:
            same = segment_ids[:, i : i + 1] == segment_ids[:, : i + 1]
            keys = keys.masked_fill(~same[..., None, None], MASKED_KEY)
            before = before.masked_fill((segment_ids[:, i] != segment_ids[:, 0])[:, None, None], MASKED_KEY)
        now = torch.logaddexp(before, keys.logsumexp(1))
        last = (before - now).exp()[..., None] * mean
        last = last + torch.einsum("bjhk,bjhv->bhkv", (keys - now[:, None]).exp(), values)
        outputs.append(torch.einsum("bhk,bhkv->bhv", at_least_float(q[:, i]).softmax(-1), last))
    return torch.stack(outputs, 1).to(v.dtype), (last, now)


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: State | None = None,
) -> tuple[torch.Tensor, State]:
    """Compute `naive` chunk by chunk, with the same arguments and results; with T = 1 it is the step."""
    state = _empty(q, v) if state is None else state
    outputs = []
    previous = None if segment_ids is None else segment_ids[:, :1]
    for start in range(0, q.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        segments = None if segment_ids is None else segment_ids[:, part]
        output, state = _chunk(q[:, part], k[:, part], v[:, part], segments, previous, state)
        previous = None if segments is None else segments[:, -1:]
        outputs.append(output)
    return torch.cat(outputs, 1), state


def _chunk(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segments: torch.Tensor | None,
    previous: torch.Tensor | None,
    state: State,
) -> tuple[torch.Tensor, State]:
    """Compute one chunk; `previous`, int `[B, 1]`, is the segment id of the dialogue that `state` belongs to."""
    mean, level = state
    q, k, v = (at_least_float(x).movedim(2, 1) for x in (q, k, v))  # [B, H, C, K]
    q = q.softmax(-1)
    length = k.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=k.device).tril()[None, None]
    before = level[:, :, None].expand(-1, -1, length, -1)  # [B, H, C, K]
    if segments is not None:
        assert previous is not None
        causal = causal & (segments[:, :, None] == segments[:, None, :])[:, None]
        before = before.masked_fill(segments.ne(previous)[:, None, :, None], MASKED_KEY)
    keys = k[:, :, None].masked_fill(~causal[..., None], MASKED_KEY)  # [B, H, C, C, K]
    now = torch.logaddexp(before, keys.logsumexp(3))  # [B, H, C, K]
    weights = torch.einsum("bhik,bhijk->bhij", q, (keys - now[:, :, :, None]).exp())
    output = weights @ v + (q * (before - now).exp()) @ mean
    mean = (before - now).exp()[:, :, -1, :, None] * mean
    mean = mean + (keys - now[:, :, :, None]).exp()[:, :, -1].transpose(-1, -2) @ v
    return output.movedim(1, 2), (mean, now[:, :, -1])


def _empty(q: torch.Tensor, v: torch.Tensor) -> State:
    batch, _, heads, width = q.shape
    wide = torch.promote_types(q.dtype, torch.float32)
    mean = q.new_zeros(batch, heads, width, v.shape[-1], dtype=wide)
    return mean, q.new_full((batch, heads, width), MASKED_KEY, dtype=wide)


class EfficientAttention(Mixer):
    """Causal Efficient attention, without positions."""

    def __init__(self, config: XianliaoConfig):
        super().__init__(config)

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        q, k, v = self.project(x, tokens, state)
        if tokens.keep is not None:
            k = k.masked_fill(~tokens.keep[..., None, None], MASKED_KEY)
        before = None
        if state is not None and "mean" in state.tensors:
            before = state.tensors["mean"], state.tensors["level"]
        run = naive if form == "naive" else chunked
        output, (mean, level) = run(q, k, v, tokens.segment_ids, before)
        if state is not None:
            state.remember(x.shape[1], mean=mean, level=level)
        return self.finish(x, output.to(x.dtype))
