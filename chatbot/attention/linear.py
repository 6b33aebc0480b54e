"""Causal linear attention with a decay per head, and its three forms.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = S_t^T q_t

per head, with the log decay g_t <= 0. Fixed g (one rate a head) is RetNet's (arXiv 2307.08621, eq. 5); a scalar g_t
computed from the input is Mamba-2's and simple GLA's (arXiv 2405.21060, eq. 16; arXiv 2312.06635). q and k go through
SiLU as in TransNormer (arXiv 2210.10340), whose normalisation of the output per head also stands for the denominator of
the undecayed form (arXiv 2006.16236, eq. 9; 苏剑林, kexue.fm/archives/7546).

Padding (`keep` False) leaves the state as it was. Packed dialogues (`segment_ids`) start from an empty state.
Dims: B batch, T tokens, H heads, K width of query and key, V width of value, N chunks, C tokens a chunk.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from chatbot.configuration import XianliaoConfig
from chatbot.state import MixerState


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, one position at a time: o_i = sum_{j<=i} exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j.

    Args:
        q, k: `[B, T, H, K]`.
        v: `[B, T, H, V]`.
        log_decay: `[B, T, H]`, <= 0.
        segment_ids: int `[B, T]`, non-decreasing: which packed dialogue a token belongs to. `None` is one dialogue.
        state: `[B, H, K, V]` before the first token, of the same dialogue as the first token. `None` is empty.

    Returns:
        o `[B, T, H, V]` and the state `[B, H, K, V]` after the last token, fp32.
    """
    length = q.shape[1]
    cumulative = log_decay.float().cumsum(1)  # [B, T, H]
    outputs = []
    for i in range(length):
        past = slice(0, i + 1)
        weight = (cumulative[:, i : i + 1] - cumulative[:, past]).exp()  # [B, i+1, H]
        if segment_ids is not None:
            weight = weight * (segment_ids[:, i : i + 1] == segment_ids[:, past])[..., None]
        weight = weight * torch.einsum("bhk,bjhk->bjh", q[:, i], k[:, past])
        output = torch.einsum("bjh,bjhv->bhv", weight, v[:, past])
        if state is not None:
            carried = cumulative[:, i].exp()
            if segment_ids is not None:
                carried = carried * (segment_ids[:, i] == segment_ids[:, 0])[:, None]
            output = output + carried[..., None] * torch.einsum("bhk,bhkv->bhv", q[:, i], state)
        outputs.append(output)
    weight = (cumulative[:, -1:] - cumulative).exp()
    if segment_ids is not None:
        weight = weight * (segment_ids == segment_ids[:, -1:])[..., None]
    last = torch.einsum("bjh,bjhk,bjhv->bhkv", weight, k.float(), v.float())
    if state is not None:
        carried = cumulative[:, -1].exp()
        if segment_ids is not None:
            carried = carried * (segment_ids[:, -1] == segment_ids[:, 0])[:, None]
        last = last + carried[..., None, None] * state
    return torch.stack(outputs, 1), last


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`naive` in blocks: matrix products inside a chunk, the state between chunks. Same arguments and results.

    Values of later positions are multiplied by zero, so a NaN (not a large number) in one spoils its whole chunk.
    """
    batch, length, heads, _ = q.shape
    chunk = min(chunk_size, length)
    padding = -length % chunk
    if padding:  # padded keys are zero and padded decays one: the state passes through
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
        log_decay = F.pad(log_decay, (0, 0, 0, padding))
        if segment_ids is not None:
            segment_ids = torch.cat([segment_ids, segment_ids[:, -1:].expand(-1, padding)], 1)
    blocks = q.shape[1] // chunk

    def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, ...] -> [B, H, N, C, ...]
        return x.unflatten(1, (blocks, chunk)).movedim(3, 1)

    q, k, v, cumulative = split(q), split(k), split(v), split(log_decay.float()).cumsum(-1)
    total = cumulative[..., -1:]  # [B, H, N, 1]
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    # How much of position j, of the state before the chunk, and of position j in the state after it remains at i.
    inside = cumulative[..., :, None] - cumulative[..., None, :]  # [B, H, N, C, C]
    into, onto = cumulative.exp(), (total - cumulative).exp()  # [B, H, N, C]
    through = total[..., 0].exp()  # [B, H, N]
    if segment_ids is not None:
        segments = segment_ids.unflatten(1, (blocks, chunk))[:, None]  # [B, 1, N, C]
        first, last = segments[..., :1], segments[..., -1:]
        before = torch.cat([first[:, :, :1], last[:, :, :-1]], 2)  # [B, 1, N, 1]: the dialogue of the incoming state
        causal = causal & (segments[..., :, None] == segments[..., None, :])
        into = into * (segments == before)
        onto = onto * (segments == last)
        through = through * (before == last)[..., 0]
    scores = (q @ k.transpose(-1, -2)) * inside.masked_fill(~causal, -math.inf).exp()
    output = scores.to(v.dtype) @ v  # [B, H, N, C, V]
    update = (k * onto[..., None].to(k.dtype)).transpose(-1, -2) @ v  # [B, H, N, K, V]
    states = []
    carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1], dtype=torch.float32) if state is None else state
    for block in range(blocks):
        states.append(carry)
        carry = through[:, :, block, None, None] * carry + update[:, :, block].float()
    output = output + (q * into[..., None].to(q.dtype)) @ torch.stack(states, 2).to(q.dtype)
    return output.movedim(1, 3).flatten(1, 2)[:, :length], carry


def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token: q, k `[B, 1, H, K]`, v `[B, 1, H, V]`, log_decay `[B, 1, H]`, state `[B, H, K, V]` fp32.

    Returns:
        o `[B, 1, H, V]` and the new state; constant time and memory, however long the dialogue.
    """
    new = k[:, 0, :, :, None].float() * v[:, 0, :, None, :].float()
    state = log_decay[:, 0, :, None, None].float().exp() * state + new
    output = (q[:, 0, :, None, :].float() @ state).squeeze(2)
    return output[:, None].to(v.dtype), state


class LinearAttention(nn.Module):
    """The mixer: projections, decay, one of the three forms, a norm per head, output projection.

    Args:
        config: Sizes.
        decay: `fixed`, one rate a head; `data`, rate times softplus of a projection of the input.
    """

    def __init__(self, config: XianliaoConfig, decay: Literal["fixed", "data"]):
        super().__init__()
        self.heads, self.head_dim, self.chunk_size = config.num_attention_heads, config.head_dim, config.chunk_size
        self.eps = config.layer_norm_eps
        inner = self.heads * self.head_dim
        self.qkv_proj = nn.Linear(config.hidden_size, 3 * inner, bias=False)
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=False)
        self.gate_proj = nn.Linear(config.hidden_size, self.heads) if decay == "data" else None
        self.log_rate = nn.Parameter(torch.empty(self.heads), requires_grad=decay == "data")

    def reset_log_rate(self) -> None:
        """Rates from 1/2 (forgets in a word) to 1/512 (keeps the whole dialogue), geometric over the heads."""
        with torch.no_grad():
            self.log_rate.copy_(-math.log(2) * torch.linspace(1, 9, self.heads))

    def log_decay(self, x: torch.Tensor) -> torch.Tensor:
        """g_t of the module docstring: x `[B, T, D]` -> fp32 `[B, T, H]`, <= 0."""
        rate = self.log_rate.float().exp()
        if self.gate_proj is None:
            return -rate.expand(*x.shape[:2], -1)
        return -rate * F.softplus(self.gate_proj(x).float())

    def forward(
        self,
        x: torch.Tensor,
        keep: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        state: MixerState | None = None,
        form: Literal["auto", "naive"] = "auto",
    ) -> torch.Tensor:
        """Mixes `[B, T, D]` over T.

        Args:
            x: Normalised hidden states.
            keep: bool `[B, T]`, False at padding; `None` when there is none.
            segment_ids: int `[B, T]`, see `naive`.
            state: Read before, replaced after; `None` starts empty and remembers nothing.
            form: `auto` takes the step for one token with a state and the chunked form otherwise.
        """
        batch, length, _ = x.shape
        q, k, v = self.qkv_proj(x).view(batch, length, 3, self.heads, self.head_dim).unbind(2)  # [B, T, H, K]
        q, k = F.silu(q), F.silu(k) * self.head_dim**-0.5
        log_decay = self.log_decay(x)
        if keep is not None:
            k = k * keep[..., None, None]
            log_decay = log_decay * keep[..., None]
        carried = None if state is None else state.tensors.get("recurrent")
        if form == "naive":
            output, carried = naive(q, k, v, log_decay, segment_ids, carried)
        elif length == 1 and carried is not None:
            output, carried = step(q, k, v, log_decay, carried)
        else:
            output, carried = chunked(q, k, v, log_decay, segment_ids, carried, self.chunk_size)
        if state is not None:
            state.remember(length, recurrent=carried)
        output = F.layer_norm(output, (self.head_dim,), eps=self.eps)
        return self.o_proj(output.reshape(batch, length, -1))
