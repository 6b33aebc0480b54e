"""Efficient attention (Shen et al., arXiv 1812.01243), made causal.

The paper's softmax_d(Q) softmax_n(K)^T V normalises each key channel over all positions, the future included: as written
it leaks (`bidirectional` is kept to show it). The causal form normalises over the past alone,

    o_i = sum_c softmax_d(q_i)_c (sum_{j<=i} e^{k_jc} v_j) / (sum_{j<=i} e^{k_jc})

The state is, per channel c, the weighted mean of the values and L_c = log sum_{j<=i} e^{k_jc}: no weight exceeds one, so
no key overflows. The chunked form works with the same differences k_jc - L_ic, on short chunks for their [C, C, K]
weights. Dims as in `chatbot.model.attention.recurrence`.
"""

from __future__ import annotations

import torch

from chatbot.model.attention.mixer import Form, Mixer, Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.state import MixerState

CHUNK = 16
NOTHING = -1e30
"""A key that weighs nothing; finite, for log-sum-exp of infinities has no gradient."""


def bidirectional(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Equation 3 of the paper as written; not causal: for encoders, and for the test that shows the leak."""
    return torch.einsum("bihk,bjhk,bjhv->bihv", q.softmax(-1), k.softmax(1), v)


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The definition, one position at a time.

    Args:
        q, k: `[B, T, H, K]`; a key of `NOTHING` is padding.
        v: `[B, T, H, V]`.
        segment_ids: int `[B, T]`, non-decreasing. `None` is one dialogue.
        state: Weighted means `[B, H, K, V]` and L `[B, H, K]` before the first token. `None` is empty.

    Returns:
        o `[B, T, H, V]` and the state after the last token, fp32.
    """
    mean, level = state if state is not None else _empty(q, v)
    outputs, now, last = [], level, mean
    for i in range(q.shape[1]):
        keys, values = k[:, : i + 1].float(), v[:, : i + 1].float()  # [B, i+1, H, K]
        before = level
        if segment_ids is not None:
            same = segment_ids[:, i : i + 1] == segment_ids[:, : i + 1]
            keys = keys.masked_fill(~same[..., None, None], NOTHING)
            before = before.masked_fill((segment_ids[:, i] != segment_ids[:, 0])[:, None, None], NOTHING)
        now = torch.logaddexp(before, keys.logsumexp(1))
        last = (before - now).exp()[..., None] * mean
        last = last + torch.einsum("bjhk,bjhv->bhkv", (keys - now[:, None]).exp(), values)
        outputs.append(torch.einsum("bhk,bhkv->bhv", q[:, i].float().softmax(-1), last))
    return torch.stack(outputs, 1).to(v.dtype), (last, now)


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: tuple[torch.Tensor, torch.Tensor] | None = None,
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """`naive` chunk by chunk: same arguments and results; with T = 1 it is the step."""
    mean, level = state if state is not None else _empty(q, v)
    outputs = []
    previous = None if segment_ids is None else segment_ids[:, :1]
    for start in range(0, q.shape[1], CHUNK):
        part = slice(start, start + CHUNK)
        segments = None if segment_ids is None else segment_ids[:, part]
        output, (mean, level) = _chunk(q[:, part], k[:, part], v[:, part], segments, previous, mean, level)
        previous = None if segments is None else segments[:, -1:]
        outputs.append(output)
    return torch.cat(outputs, 1), (mean, level)


def _chunk(q, k, v, segments, previous, mean, level):
    """One chunk; `previous` `[B, 1]` is the dialogue of the incoming state."""
    q, k, v = q.float().softmax(-1).movedim(2, 1), k.float().movedim(2, 1), v.float().movedim(2, 1)  # [B, H, C, K]
    length = k.shape[2]
    causal = torch.ones(length, length, dtype=torch.bool, device=k.device).tril()[None, None]
    before = level[:, :, None].expand(-1, -1, length, -1)  # [B, H, C, K]
    if segments is not None:
        causal = causal & (segments[:, :, None] == segments[:, None, :])[:, None]
        before = before.masked_fill((segments != previous)[:, None, :, None], NOTHING)
    keys = k[:, :, None].masked_fill(~causal[..., None], NOTHING)  # [B, H, C, C, K]
    now = torch.logaddexp(before, keys.logsumexp(3))  # [B, H, C, K]
    weights = torch.einsum("bhik,bhijk->bhij", q, (keys - now[:, :, :, None]).exp())
    output = weights @ v + (q * (before - now).exp()) @ mean
    mean = (before - now).exp()[:, :, -1, :, None] * mean
    mean = mean + (keys - now[:, :, :, None]).exp()[:, :, -1].transpose(-1, -2) @ v
    return output.movedim(1, 2), (mean, now[:, :, -1])


def _empty(q: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    batch, _, heads, width = q.shape
    mean = q.new_zeros(batch, heads, width, v.shape[-1], dtype=torch.float32)
    return mean, q.new_full((batch, heads, width), NOTHING, dtype=torch.float32)


class EfficientAttention(Mixer):
    """The causal form; no positions."""

    def __init__(self, config: XianliaoConfig):
        super().__init__(config)

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        q, k, v = self.project(x, tokens, state)
        if tokens.keep is not None:
            k = k.masked_fill(~tokens.keep[..., None, None], NOTHING)
        carried = (
            (state.tensors["mean"], state.tensors["level"]) if state is not None and "mean" in state.tensors else None
        )
        run = naive if form == "naive" else chunked
        output, (mean, level) = run(q, k, v, tokens.segment_ids, carried)
        if state is not None:
            state.remember(x.shape[1], mean=mean, level=level)
        return self.finish(x, output.to(x.dtype))
