"""The gated delta rule: a state that overwrites the value stored under a key instead of adding to it.

    S_t = exp(g_t) (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T          o_t = S_t^T q_t

with |k_t| = 1, 0 < b_t < 1 and g_t <= 0 (Gated DeltaNet, arXiv 2412.06464, eq. 10; with g = 0 DeltaNet, arXiv
2406.06484, eq. 4). The chunked form is the WY representation (arXiv 2406.06484, section 3.2) with decays: inside a
chunk

    (I + tril(b_i exp(c_i - c_j) k_i.k_j, -1)) U = b (V - exp(c) K S)

is solved for U, the values that the positions actually write. c is the running sum of g in the chunk and S the state
before it. Dims as in `chatbot.model.attention.recurrence`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from chatbot.model.attention import fused
from chatbot.model.attention.linear import init_log_rate
from chatbot.model.attention.mixer import Form, Mixer
from chatbot.model.attention.recurrence import chunks_of, decay_factors, decay_gradient, pad_to_chunks, tokens_of
from chatbot.model.attention.tokens import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the definition, token by token.

    Args:
        q, k: `[B, T, H, K]`, k of length 1 or 0.
        v: `[B, T, H, V]`.
        log_decay: `[B, T, H]`, <= 0.
        beta: `[B, T, H]`, share of the stored value that each token replaces.
        segment_ids: int `[B, T]`, non-decreasing: index of each token's packed dialogue. `None` is one dialogue per
            row.
        state: `[B, H, K, V]` before the first token. `None` is empty.

    Returns:
        o `[B, T, H, V]`, and the state `[B, H, K, V]` after the last token, at least fp32.
    """
    if state is None:
        state = at_least_float(q.new_zeros(q.shape[0], *q.shape[2:], v.shape[-1]))
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
    """Compute one token: arguments of `naive` with T = 1 and a state."""
    dtype = v.dtype
    q, k, v, beta = (at_least_float(x[:, 0]) for x in (q, k, v, beta))
    state = at_least_float(log_decay[:, 0, :, None, None]).exp() * state
    stored = (k[:, :, None] @ state).squeeze(2)  # [B, H, V]
    state = state + k[..., None] * (beta[..., None] * (v - stored))[:, :, None]
    return (q[:, :, None] @ state).squeeze(2)[:, None].to(dtype), state


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
    """Compute `naive` in chunks, with one triangular solve per chunk and the state passed between chunks."""
    batch, length, heads, _ = q.shape
    chunk = min(chunk_size, length)
    (q, k, v, log_decay, beta), segment_ids = pad_to_chunks((q, k, v, log_decay, beta), segment_ids, chunk)
    blocks = q.shape[1] // chunk
    dtype = v.dtype

    def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, ...] -> at least fp32 [B, H, N, C, ...]
        return at_least_float(x).unflatten(1, (blocks, chunk)).movedim(3, 1)

    q, k, v, beta = (split(x) for x in (q, k, v, beta))
    cumulative = split(log_decay).cumsum(-1)
    decay = decay_factors(cumulative, segment_ids, chunk)
    lower = (beta[..., None] * (k @ k.transpose(-1, -2)) * decay.within).tril(-1)
    unit = lower + torch.eye(chunk, dtype=lower.dtype, device=q.device)
    right = torch.cat([beta[..., None] * v, (beta * decay.incoming)[..., None] * k], -1)
    solved = torch.linalg.solve_triangular(unit, right, upper=False, unitriangular=True)
    written, erased = solved.split([v.shape[-1], k.shape[-1]], -1)  # U = written - erased S
    scores = (q @ k.transpose(-1, -2)) * decay.within
    queries, keys = q * decay.incoming[..., None], (k * decay.outgoing[..., None]).transpose(-1, -2)
    carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1]) if state is None else state
    outputs = []
    for block in range(blocks):
        u = written[:, :, block] - erased[:, :, block] @ carry
        outputs.append(queries[:, :, block] @ carry + scores[:, :, block] @ u)
        carry = decay.whole[:, :, block, None, None] * carry + keys[:, :, block] @ u
    output = torch.stack(outputs, 2)  # [B, H, N, C, V]
    return output.movedim(1, 3).flatten(1, 2)[:, :length].to(dtype), carry


class ChunkedDeltaRule(torch.autograd.Function):
    """`chunked` with a hand-written gradient; differentiable once.

    The decays enter through exp(c_i) with the readers at i (q_i, and k_i in the erasing rows) and through exp(-c_j)
    with the writers at j, c being the running sum of g in a chunk: dc = q.dq + k.dk(reading) - k.dk(writing).
    """

    @staticmethod
    def forward(ctx, q, k, v, log_decay, beta, segment_ids, state, chunk: int):
        batch, length, heads, _ = q.shape
        shape = (batch, heads, length // chunk)
        q, k, v, beta = (chunks_of(x, chunk) for x in (q, k, v, beta[..., None]))
        cumulative = log_decay.unflatten(1, (-1, chunk)).movedim(3, 1).cumsum(-1)
        decay = decay_factors(cumulative, segment_ids, chunk)
        within, whole = decay.within.view(-1, chunk, chunk), decay.whole
        incoming, outgoing = decay.incoming.view(-1, chunk, 1), decay.outgoing.view(-1, chunk, 1)
        lower = torch.bmm(k, k.mT).mul_(within).mul_(beta).tril_(-1)
        eye = torch.eye(chunk, dtype=lower.dtype, device=q.device).expand_as(lower)
        inverse = torch.linalg.solve_triangular(lower + eye, eye, upper=False, unitriangular=True)
        fresh = torch.bmm(inverse, v * beta)  # [B H N, C, V]
        erased = torch.bmm(inverse, k * (beta * incoming))  # [B H N, C, K]
        scores = torch.bmm(q, k.mT).mul_(within)
        keys = (k * outgoing).unflatten(0, shape)
        written = fresh.unflatten(0, shape).clone()
        erased_by_chunk = erased.unflatten(0, shape)
        carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1]) if state is None else at_least_float(state)
        states = q.new_empty(*shape, *carry.shape[2:])
        for n in range(shape[2]):
            states[:, :, n] = carry
            written[:, :, n] -= erased_by_chunk[:, :, n] @ carry
            carry = whole[:, :, n, None, None] * carry + keys[:, :, n].mT @ written[:, :, n]
        written, states = written.flatten(0, 2), states.flatten(0, 2)
        output = torch.bmm(scores, written).baddbmm_(q * incoming, states)
        ctx.save_for_backward(
            q, k, v, beta, within, incoming, outgoing, whole, inverse, fresh, erased, scores, written, states, carry
        )
        ctx.shape, ctx.has_state = shape, state is not None
        return tokens_of(output, shape), carry

    @staticmethod
    @once_differentiable
    def backward(ctx, output_gradient, last_gradient):
        q, k, v, beta, within, incoming, outgoing, whole, inverse, fresh, erased, scores, written, states, last = (
            ctx.saved_tensors
        )
        shape, chunk = ctx.shape, q.shape[1]
        do = chunks_of(output_gradient, chunk)
        # From the last chunk to the first: gradients of the written values, and of the state after each chunk.
        dwritten = torch.bmm(scores.mT, do).unflatten(0, shape)
        from_output = torch.bmm((q * incoming).mT, do).unflatten(0, shape)
        keys, erased_by_chunk = (k * outgoing).unflatten(0, shape), erased.unflatten(0, shape)
        after = torch.empty_like(from_output)
        carry = last_gradient
        for n in reversed(range(shape[2])):
            after[:, :, n] = carry
            dwritten[:, :, n] += keys[:, :, n] @ carry
            carry = whole[:, :, n, None, None] * carry + from_output[:, :, n]
            carry = carry - erased_by_chunk[:, :, n].mT @ dwritten[:, :, n]
        dwritten, after = dwritten.flatten(0, 2), after.flatten(0, 2)
        dscores = torch.bmm(do, written.mT).mul_(within)
        dq = torch.bmm(do, states.mT).mul_(incoming).baddbmm_(dscores, k)
        dk_writing = torch.bmm(written, after.mT).mul_(outgoing).baddbmm_(dscores.mT, q)
        # Through the triangular solve.
        dright_v = torch.bmm(inverse.mT, dwritten)
        dright_k = torch.bmm(inverse.mT, torch.bmm(dwritten, states.mT)).neg_()
        dlower = torch.bmm(dright_v, fresh.mT).baddbmm_(dright_k, erased.mT).neg_().mul_(within).tril_(-1)
        rows = torch.bmm(dlower, k)
        dk_reading = dright_k * incoming
        dbeta = (dright_v * v).sum(-1) + ((dk_reading + rows) * k).sum(-1)
        dk_reading = dk_reading.add_(rows).mul_(beta)
        dk_writing.baddbmm_(dlower.mT, k * beta)
        dv = dright_v.mul_(beta)
        dc = (q * dq).sum(-1) + (k * (dk_reading - dk_writing)).sum(-1)
        dg = decay_gradient(dc, states, last, after, shape)
        dbeta = dbeta.view(*shape[:2], -1).movedim(1, 2)
        dq, dk, dv = (tokens_of(x, shape) for x in (dq, dk_reading.add_(dk_writing), dv))
        return dq, dk, dv, dg, dbeta, None, carry if ctx.has_state else None, None


def chunked_fast(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `chunked` with `ChunkedDeltaRule`, at least in fp32, also under autocast."""
    length = q.shape[1]
    chunk = min(chunk_size, length)
    with torch.autocast(q.device.type, enabled=False):
        tensors = [at_least_float(x) for x in (q, k, v, log_decay, beta)]
        padded, segment_ids = pad_to_chunks(tensors, segment_ids, chunk)
        output, last = ChunkedDeltaRule.apply(*padded, segment_ids, state, chunk)
    return output[:, :length], last


class GatedDeltaRule(Mixer):
    """The gated delta rule with SiLU on q, k and v, q and k of length 1, and a norm per head.

    Each head has a decay and a write strength, which are computed from the token.
    """

    def __init__(self, config: XianliaoConfig):
        super().__init__(config)
        self.chunk_size, self.eps = config.chunk_size, config.layer_norm_eps
        self.gate_proj = nn.Linear(config.hidden_size, 2 * self.heads)  # decay, write strength
        self.log_rate = nn.Parameter(torch.empty(self.heads))

    def init_weights(self, std: float) -> None:
        init_log_rate(self.log_rate)

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        q, k, v = (F.silu(part) for part in self.project(x, tokens, state))
        q, k = F.normalize(at_least_float(q), dim=-1), F.normalize(at_least_float(k), dim=-1)
        decay, strength = at_least_float(self.gate_proj(x)).split(self.heads, -1)
        log_decay = -at_least_float(self.log_rate).exp() * F.softplus(decay)
        beta = strength.sigmoid()
        if tokens.keep is not None:
            beta, log_decay = beta * tokens.keep[..., None], log_decay * tokens.keep[..., None]
        recurrent = None if state is None else state.tensors.get("recurrent")
        arguments = (q, k, v, log_decay, beta)
        if form == "naive":
            output, recurrent = naive(*arguments, tokens.segment_ids, recurrent)
        elif x.shape[1] == 1 and recurrent is not None:
            output, recurrent = step(*arguments, recurrent)
        elif fused.available(x):
            output, recurrent = fused.gated_delta_rule(*arguments, tokens.segment_ids, recurrent)
        else:
            run = chunked_fast if v.dtype == torch.float32 else chunked
            output, recurrent = run(*arguments, tokens.segment_ids, recurrent, self.chunk_size)
        if state is not None:
            state.remember(x.shape[1], recurrent=recurrent)
        return self.finish(x, F.layer_norm(output.to(x.dtype), (self.head_dim,), eps=self.eps))
