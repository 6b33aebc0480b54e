"""The gated delta rule: a state that overwrites what it holds under a key instead of adding to it.

    S_t = exp(g_t) (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T          o_t = S_t^T q_t

with |k_t| = 1, 0 < b_t < 1 and g_t <= 0 (Gated DeltaNet, arXiv 2412.06464, eq. 10; with g = 0 DeltaNet, arXiv
2406.06484, eq. 4). The chunked form is the WY representation of the latter's section 3.2 with decays: inside a chunk

    (I + tril(b_i exp(G_i - G_j) k_i.k_j, -1)) U = b (V - exp(G) K S)

is solved for U, what each position really writes, where G is the running sum of g and S the state before the chunk.
Dims as in `chatbot.attention.recurrence`.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn

from chatbot.attention import fused
from chatbot.attention.linear import init_log_rate
from chatbot.attention.mixer import Form, Mixer, Tokens
from chatbot.configuration import XianliaoConfig
from chatbot.state import MixerState


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The definition, token by token.

    Args:
        q, k: `[B, T, H, K]`, k of length 1 or 0.
        v: `[B, T, H, V]`.
        log_decay: `[B, T, H]`, <= 0.
        beta: `[B, T, H]`, how much of what is held under k is replaced.
        segment_ids: int `[B, T]`, non-decreasing: which packed dialogue a token belongs to. `None` is one dialogue.
        state: `[B, H, K, V]` before the first token. `None` is empty.

    Returns:
        o `[B, T, H, V]` and the state `[B, H, K, V]` after the last token, fp32.
    """
    if state is None:
        state = q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1], dtype=torch.float32)
    outputs = []
    for t in range(q.shape[1]):
        if segment_ids is not None and t > 0:
            same = segment_ids[:, t] == segment_ids[:, t - 1]
            state = torch.where(same[:, None, None, None], state, 0.0)
        now = slice(t, t + 1)
        output, state = step(q[:, now], k[:, now], v[:, now], log_decay[:, now], beta[:, now], state)
        outputs.append(output)
    return torch.cat(outputs, 1), state


def step(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    state: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token: arguments of `naive` with T = 1 and a state."""
    q, k, v, beta = (x[:, 0].float() for x in (q, k, v, beta))
    state = log_decay[:, 0, :, None, None].float().exp() * state
    held = (k[:, :, None] @ state).squeeze(2)  # [B, H, V]
    state = state + k[..., None] * (beta[..., None] * (v - held))[:, :, None]
    return (q[:, :, None] @ state).squeeze(2)[:, None].to(v.dtype), state


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """`naive` in blocks: one triangular solve a chunk, the state between chunks. Same arguments and results."""
    batch, length, heads, _ = q.shape
    chunk = min(chunk_size, length)
    padding = -length % chunk
    if padding:
        q, k, v = (F.pad(x, (0, 0, 0, 0, 0, padding)) for x in (q, k, v))
        log_decay, beta = (F.pad(x, (0, 0, 0, padding)) for x in (log_decay, beta))
        if segment_ids is not None:
            segment_ids = torch.cat([segment_ids, segment_ids[:, -1:].expand(-1, padding)], 1)
    blocks = q.shape[1] // chunk
    dtype = v.dtype

    def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, ...] -> fp32 [B, H, N, C, ...]
        return x.float().unflatten(1, (blocks, chunk)).movedim(3, 1)

    q, k, v, beta = (split(x) for x in (q, k, v, beta))
    cumulative = split(log_decay).cumsum(-1)
    total = cumulative[..., -1:]
    causal = torch.ones(chunk, chunk, dtype=torch.bool, device=q.device).tril()
    inside = cumulative[..., :, None] - cumulative[..., None, :]  # [B, H, N, C, C]
    into, onto, through = cumulative.exp(), (total - cumulative).exp(), total[..., 0].exp()
    if segment_ids is not None:
        segments = segment_ids.unflatten(1, (blocks, chunk))[:, None]
        first, last = segments[..., :1], segments[..., -1:]
        before = torch.cat([first[:, :, :1], last[:, :, :-1]], 2)
        causal = causal & (segments[..., :, None] == segments[..., None, :])
        into = into * (segments == before)
        onto = onto * (segments == last)
        through = through * (before == last)[..., 0]
    decay = inside.masked_fill(~causal, -math.inf).exp()
    lower = (beta[..., None] * (k @ k.transpose(-1, -2)) * decay).tril(-1)
    unit = lower + torch.eye(chunk, device=q.device)
    right = torch.cat([beta[..., None] * v, (beta * into)[..., None] * k], -1)
    solved = torch.linalg.solve_triangular(unit, right, upper=False, unitriangular=True)
    written, erased = solved.split([v.shape[-1], k.shape[-1]], -1)  # U = written - erased S
    scores = (q @ k.transpose(-1, -2)) * decay
    queries, keys = q * into[..., None], (k * onto[..., None]).transpose(-1, -2)
    carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for block in range(blocks):
        u = written[:, :, block] - erased[:, :, block] @ carry
        outputs.append(queries[:, :, block] @ carry + scores[:, :, block] @ u)
        carry = through[:, :, block, None, None] * carry + keys[:, :, block] @ u
    output = torch.stack(outputs, 2)  # [B, H, N, C, V]
    return output.movedim(1, 3).flatten(1, 2)[:, :length].to(dtype), carry


class GatedDeltaRule(Mixer):
    """SiLU on q, k and v; q and k of length 1; a decay and a write strength per head from the token; a norm per head."""

    def __init__(self, config: XianliaoConfig):
        super().__init__(config)
        self.chunk_size, self.eps = config.chunk_size, config.layer_norm_eps
        self.gate_proj = nn.Linear(config.hidden_size, 2 * self.heads)  # decay, write strength
        self.log_rate = nn.Parameter(torch.empty(self.heads))

    def init_weights(self, std: float) -> None:
        init_log_rate(self.log_rate)

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        q, k, v = (F.silu(part) for part in self.project(x, tokens, state))
        q, k = F.normalize(q.float(), dim=-1), F.normalize(k.float(), dim=-1)
        decay, strength = self.gate_proj(x).float().split(self.heads, -1)
        log_decay = -self.log_rate.float().exp() * F.softplus(decay)
        beta = strength.sigmoid()
        if tokens.keep is not None:
            beta, log_decay = beta * tokens.keep[..., None], log_decay * tokens.keep[..., None]
        carried = None if state is None else state.tensors.get("recurrent")
        arguments = (q, k, v, log_decay, beta)
        if form == "naive":
            output, carried = naive(*arguments, tokens.segment_ids, carried)
        elif x.shape[1] == 1 and carried is not None:
            output, carried = step(*arguments, carried)
        elif fused.available(x):
            output, carried = fused.gated_delta_rule(*arguments, tokens.segment_ids, carried)
        else:
            output, carried = chunked(*arguments, tokens.segment_ids, carried, self.chunk_size)
        if state is not None:
            state.remember(x.shape[1], recurrent=carried)
        return self.finish(x, F.layer_norm(output.to(x.dtype), (self.head_dim,), eps=self.eps))
