"""The gated delta rule: a state that overwrites what it holds under a key instead of adding to it.

    S_t = exp(g_t) (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T          o_t = S_t^T q_t

with |k_t| = 1, 0 < b_t < 1 and g_t <= 0 (Gated DeltaNet, arXiv 2412.06464, eq. 10; with g = 0 DeltaNet, arXiv
2406.06484, eq. 4). The chunked form is the WY representation of the latter's section 3.2 with decays: inside a chunk

    (I + tril(b_i exp(G_i - G_j) k_i.k_j, -1)) U = b (V - exp(G) K S)

is solved for U, what each position really writes, where G is the running sum of g and S the state before the chunk.
Dims as in `chatbot.model.attention.recurrence`.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd.function import once_differentiable

from chatbot.model.attention import fused
from chatbot.model.attention.linear import init_log_rate
from chatbot.model.attention.mixer import Form, Mixer, Tokens
from chatbot.model.attention.recurrence import decay_factors, decay_gradient, pad_to_chunks
from chatbot.model.config import XianliaoConfig
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
    (q, k, v, log_decay, beta), segment_ids = pad_to_chunks((q, k, v, log_decay, beta), segment_ids, chunk)
    blocks = q.shape[1] // chunk
    dtype = v.dtype

    def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, ...] -> fp32 [B, H, N, C, ...]
        return x.float().unflatten(1, (blocks, chunk)).movedim(3, 1)

    q, k, v, beta = (split(x) for x in (q, k, v, beta))
    cumulative = split(log_decay).cumsum(-1)
    decay, into, onto, through = decay_factors(cumulative, segment_ids, chunk)
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


class ChunkedDeltaRule(torch.autograd.Function):
    """`chunked` in fp32 with its gradient by hand; not twice differentiable.

    The decays enter through exp(c_i) with what reads at i (q_i, and k_i in the erasing rows) and exp(-c_j) with what is
    written at j, c being the running sum of g in a chunk: dc = q.dq + k.dk(reading) - k.dk(writing).
    """

    @staticmethod
    def forward(ctx, q, k, v, log_decay, beta, segment_ids, state, chunk: int):
        batch, length, heads, _ = q.shape
        shape = (batch, heads, length // chunk)

        def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, K] -> [B H N, C, K]
            return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).reshape(-1, chunk, x.shape[-1])

        q, k, v, beta = split(q), split(k), split(v), split(beta[..., None])
        cumulative = log_decay.unflatten(1, (-1, chunk)).movedim(3, 1).cumsum(-1)
        decay, into, onto, through = decay_factors(cumulative, segment_ids, chunk)
        decay, into, onto = decay.view(-1, chunk, chunk), into.view(-1, chunk, 1), onto.view(-1, chunk, 1)
        lower = torch.bmm(k, k.mT).mul_(decay).mul_(beta).tril_(-1)
        eye = torch.eye(chunk, device=q.device).expand_as(lower)
        inverse = torch.linalg.solve_triangular(lower + eye, eye, upper=False, unitriangular=True)
        fresh = torch.bmm(inverse, v * beta)  # [B H N, C, V]
        erased = torch.bmm(inverse, k * (beta * into))  # [B H N, C, K]
        scores = torch.bmm(q, k.mT).mul_(decay)
        keys = (k * onto).unflatten(0, shape)
        written = fresh.unflatten(0, shape).clone()
        by_chunk = erased.unflatten(0, shape)
        carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1]) if state is None else state.float()
        states = q.new_empty(*shape, *carry.shape[2:])
        for n in range(shape[2]):
            states[:, :, n] = carry
            written[:, :, n] -= by_chunk[:, :, n] @ carry
            carry = through[:, :, n, None, None] * carry + keys[:, :, n].mT @ written[:, :, n]
        written, states = written.flatten(0, 2), states.flatten(0, 2)
        output = torch.bmm(scores, written).baddbmm_(q * into, states)
        saved = (q, k, v, beta, decay, into, onto, through, inverse, fresh, erased, scores, written, states, carry)
        ctx.save_for_backward(*saved)
        ctx.shape, ctx.has_state = shape, state is not None
        return output.unflatten(0, shape).permute(0, 2, 3, 1, 4).reshape(batch, length, heads, -1), carry

    @staticmethod
    @once_differentiable
    def backward(ctx, output_gradient, last_gradient):
        q, k, v, beta, decay, into, onto, through, inverse, fresh, erased, scores, written, states, last = (
            ctx.saved_tensors
        )
        shape, chunk = ctx.shape, q.shape[1]
        do = output_gradient.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).reshape(-1, chunk, v.shape[-1])
        # From the last chunk to the first: gradients of what is written, and of the state after each chunk.
        dwritten = torch.bmm(scores.mT, do).unflatten(0, shape)
        reading = torch.bmm((q * into).mT, do).unflatten(0, shape)
        keys, by_chunk = (k * onto).unflatten(0, shape), erased.unflatten(0, shape)
        after = torch.empty_like(reading)
        carry = last_gradient
        for n in reversed(range(shape[2])):
            after[:, :, n] = carry
            dwritten[:, :, n] += keys[:, :, n] @ carry
            carry = through[:, :, n, None, None] * carry + reading[:, :, n] - by_chunk[:, :, n].mT @ dwritten[:, :, n]
        dwritten, after = dwritten.flatten(0, 2), after.flatten(0, 2)
        inner = torch.bmm(do, written.mT).mul_(decay)
        dq = torch.bmm(do, states.mT).mul_(into).baddbmm_(inner, k)
        dk_writing = torch.bmm(written, after.mT).mul_(onto).baddbmm_(inner.mT, q)
        # Through the triangular solve.
        dright_v = torch.bmm(inverse.mT, dwritten)
        dright_k = torch.bmm(inverse.mT, torch.bmm(dwritten, states.mT)).neg_()
        dlower = torch.bmm(dright_v, fresh.mT).baddbmm_(dright_k, erased.mT).neg_().mul_(decay).tril_(-1)
        rows = torch.bmm(dlower, k)
        dk_reading = dright_k * into
        dbeta = (dright_v * v).sum(-1) + ((dk_reading + rows) * k).sum(-1)
        dk_reading = dk_reading.add_(rows).mul_(beta)
        dk_writing.baddbmm_(dlower.mT, k * beta)
        dv = dright_v.mul_(beta)
        dc = (q * dq).sum(-1) + (k * (dk_reading - dk_writing)).sum(-1)
        dg = decay_gradient(dc, states, last, after, shape)
        dbeta = dbeta.view(*shape[:2], -1).movedim(1, 2)

        def join(x: torch.Tensor) -> torch.Tensor:  # [B H N, C, K] -> [B, T, H, K]
            return x.unflatten(0, shape).permute(0, 2, 3, 1, 4).reshape(shape[0], shape[2] * chunk, shape[1], -1)

        gradients = join(dq), join(dk_reading.add_(dk_writing)), join(dv), dg, dbeta
        return *gradients, None, carry if ctx.has_state else None, None


def chunked_fast(q, k, v, log_decay, beta, segment_ids=None, state=None, chunk_size: int = 64):
    """`chunked` through `ChunkedDeltaRule`, in fp32, under autocast too."""
    length = q.shape[1]
    chunk = min(chunk_size, length)
    with torch.autocast(q.device.type, enabled=False):
        tensors = [x.float() for x in (q, k, v, log_decay, beta)]
        tensors, segment_ids = pad_to_chunks(tensors, segment_ids, chunk)
        output, last = ChunkedDeltaRule.apply(*tensors, segment_ids, state, chunk)
    return output[:, :length], last


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
            run = chunked_fast if v.dtype == torch.float32 else chunked
            output, carried = run(*arguments, tokens.segment_ids, carried, self.chunk_size)
        if state is not None:
            state.remember(x.shape[1], recurrent=carried)
        return self.finish(x, F.layer_norm(output.to(x.dtype), (self.head_dim,), eps=self.eps))
