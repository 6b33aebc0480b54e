"""The decayed linear recurrence and its three forms, used by all linear mixers except the delta rule.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = S_t^T q_t

per head, with the log decay g_t <= 0. g = 0 is the plain sum of arXiv 2006.16236 (eq. 10), a fixed g (one rate per
head) RetNet's (arXiv 2307.08621, eq. 5), a scalar g_t from the input Mamba-2's and simple GLA's (arXiv 2405.21060, eq.
16; arXiv 2312.06635).

Chunked form. With c_i the running sum of g inside a chunk and S the state before it, unrolling the recurrence gives

    o_i = exp(c_i) S^T q_i + sum_{j<=i} exp(c_i - c_j) (q_i.k_j) v_j
    S'  = exp(c_C) S + sum_j exp(c_C - c_j) k_j v_j^T

`decay_factors` holds these four factors. Packed dialogues (`segment_ids`) start from an empty state: the factors
between different dialogues are zero. The sums c_i run across the borders of dialogues, so a neighbouring dialogue can
change a result by rounding, but in no other way. Padding is a token with k = 0 and g = 0.

Dims: B batch, T tokens, H heads, K width of query and key, V width of value, N chunks, C tokens per chunk.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from chatbot.model.attention import fused
from chatbot.model.attention.mixer import Form
from chatbot.model.precision import at_least_float


def naive(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the definition, one position at a time: o_i = sum_{j<=i} exp(g_{j+1} + ... + g_i) (q_i.k_j) v_j.

    Args:
        q, k: `[B, T, H, K]`.
        v: `[B, T, H, V]`.
        log_decay: `[B, T, H]`, <= 0, or `[B, T, 1]` for all heads.
        segment_ids: int `[B, T]`, non-decreasing: index of each token's packed dialogue. `None` is one dialogue per
            row.
        state: `[B, H, K, V]` before the first token, of the same dialogue as the first token. `None` is empty.

    Returns:
        o `[B, T, H, V]`, and the state `[B, H, K, V]` after the last token, at least fp32.
    """
    outputs = []
    for i in range(q.shape[1]):
        past = slice(0, i + 1)
        weight = decays_to_last(log_decay[:, past])  # [B, i+1, H]
        if segment_ids is not None:
            weight = weight * (segment_ids[:, i : i + 1] == segment_ids[:, past])[..., None]
        weight = weight * torch.einsum("bhk,bjhk->bjh", q[:, i], k[:, past])
        output = torch.einsum("bjh,bjhv->bhv", weight, v[:, past])
        if state is not None:
            carried = at_least_float(log_decay[:, past]).sum(1).exp()
            if segment_ids is not None:
                carried = carried * (segment_ids[:, i] == segment_ids[:, 0])[:, None]
            output = output + carried[..., None] * torch.einsum("bhk,bhkv->bhv", q[:, i], state)
        outputs.append(output)
    weight = decays_to_last(log_decay)
    if segment_ids is not None:
        weight = weight * (segment_ids == segment_ids[:, -1:])[..., None]
    last = torch.einsum("bjh,bjhk,bjhv->bhkv", weight, at_least_float(k), at_least_float(v))
    if state is not None:
        carried = at_least_float(log_decay).sum(1).exp()
        if segment_ids is not None:
            carried = carried * (segment_ids[:, -1] == segment_ids[:, 0])[:, None]
        last = last + carried[..., None, None] * state
    return torch.stack(outputs, 1), last


def decays_to_last(log_decay: torch.Tensor) -> torch.Tensor:
    """Return exp(g_{j+1} + ... + g_T) for every j, `[B, T, H]`, summed from the end.

    A difference of two sums from the start would lose a digit or two where the sums are large.
    """
    later = at_least_float(log_decay)[:, 1:].flip(1).cumsum(1).flip(1)
    return F.pad(later, (0, 0, 0, 1)).exp()


def chunked(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `naive` in chunks: matrix products inside a chunk, the state between chunks. Same arguments and results.

    Values of later positions are multiplied by zero, so a NaN (but not a large number) in one of them spoils the
    outputs of its whole chunk.
    """
    batch, length, heads, _ = q.shape
    chunk = min(chunk_size, length)
    (q, k, v, log_decay), segment_ids = pad_to_chunks((q, k, v, log_decay), segment_ids, chunk)
    blocks = q.shape[1] // chunk

    def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, ...] -> [B, H, N, C, ...]
        return x.unflatten(1, (blocks, chunk)).movedim(3, 1)

    q, k, v, cumulative = split(q), split(k), split(v), split(at_least_float(log_decay)).cumsum(-1)
    decay = decay_factors(cumulative, segment_ids, chunk)
    scores = (q @ k.transpose(-1, -2)) * decay.within
    output = scores.to(v.dtype) @ v  # [B, H, N, C, V]
    update = (k * decay.outgoing[..., None].to(k.dtype)).transpose(-1, -2) @ v  # [B, H, N, K, V]
    states = []
    wide = torch.promote_types(q.dtype, torch.float32)
    carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1], dtype=wide) if state is None else state
    for block in range(blocks):
        states.append(carry)
        carry = decay.whole[:, :, block, None, None] * carry + at_least_float(update[:, :, block])
    output = output + (q * decay.incoming[..., None].to(q.dtype)) @ torch.stack(states, 2).to(q.dtype)
    return output.movedim(1, 3).flatten(1, 2)[:, :length], carry


def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute one token in constant time and memory.

    Args:
        q, k: `[B, 1, H, K]`.
        v: `[B, 1, H, V]`.
        log_decay: `[B, 1, H]`.
        state: `[B, H, K, V]`, at least fp32.

    Returns:
        o `[B, 1, H, V]` and the new state.
    """
    new = at_least_float(k[:, 0, :, :, None]) * at_least_float(v[:, 0, :, None, :])
    state = at_least_float(log_decay[:, 0, :, None, None]).exp() * state + new
    output = (at_least_float(q[:, 0, :, None, :]) @ state).squeeze(2)
    return output[:, None].to(v.dtype), state


class ChunkedRecurrence(torch.autograd.Function):
    """`chunked` with a hand-written gradient: half the time of autograd's, because less is stored and recomputed.

    Inside a chunk o_i depends on the decays only through exp(c_i) q_i and exp(-c_j) k_j, c being the running sum of g,
    so dc_i = q_i.dq_i - k_i.dk_i; see `decay_gradient`. Differentiable once; gradient penalties need `naive`.
    """

    @staticmethod
    def forward(ctx, q, k, v, log_decay, segment_ids, state, chunk: int):
        batch, length, heads, _ = q.shape
        shape = (batch, heads, length // chunk)
        q, k, v = (chunks_of(x, chunk) for x in (q, k, v))
        cumulative = log_decay.unflatten(1, (-1, chunk)).movedim(3, 1).cumsum(-1)  # [B, H, N, C]
        decay = decay_factors(cumulative, segment_ids, chunk)
        incoming, outgoing = decay.incoming[..., None], decay.outgoing[..., None]
        scores = multiply_(torch.bmm(q, k.mT), decay.within, shape)
        output = torch.bmm(scores, v)
        update = torch.bmm(multiplied(k, outgoing, shape).mT, v).unflatten(0, shape)
        states = torch.empty_like(update)
        carry = torch.zeros_like(update[:, :, 0]) if state is None else at_least_float(state)
        for block in range(shape[2]):
            states[:, :, block] = carry
            carry = torch.addcmul(update[:, :, block], decay.whole[:, :, block, None, None], carry)
        states = states.flatten(0, 2)
        output.baddbmm_(multiplied(q, incoming, shape), states)
        ctx.save_for_backward(q, k, v, decay.within, scores, incoming, outgoing, decay.whole, states, carry)
        ctx.shape, ctx.has_state = shape, state is not None
        return tokens_of(output, shape), carry

    @staticmethod
    @once_differentiable
    def backward(ctx, output_gradient, last_gradient):
        q, k, v, within, scores, incoming, outgoing, whole, states, last = ctx.saved_tensors
        shape, chunk = ctx.shape, q.shape[1]
        do = chunks_of(output_gradient, chunk)
        # Gradient of the state after each chunk, from the last chunk to the first.
        from_output = torch.bmm(multiplied(q, incoming, shape).mT, do).unflatten(0, shape)
        after = torch.empty_like(from_output)
        carry = last_gradient
        for block in reversed(range(shape[2])):
            after[:, :, block] = carry
            carry = torch.addcmul(from_output[:, :, block], whole[:, :, block, None, None], carry)
        after = after.flatten(0, 2)
        dv = torch.bmm(scores.mT, do).baddbmm_(multiplied(k, outgoing, shape), after)
        dscores = multiply_(torch.bmm(do, v.mT), within, shape)
        dq = multiply_(torch.bmm(do, states.mT), incoming, shape).baddbmm_(dscores, k)
        dk = multiply_(torch.bmm(v, after.mT), outgoing, shape).baddbmm_(dscores.mT, q)
        dg = None
        if ctx.needs_input_grad[3]:
            wide = torch.float64  # the terms almost cancel in the sums of a chunk
            dc = (q * dq).sum(-1, dtype=wide).sub_((k * dk).sum(-1, dtype=wide))
            dg = decay_gradient(dc, states, last, after, shape)
            dg = dg if within.shape[1] == shape[1] else dg.sum(2, keepdim=True)  # one decay for all heads
        dq, dk, dv = (tokens_of(x, shape) for x in (dq, dk, dv))
        return dq, dk, dv, dg, None, carry if ctx.has_state else None, None


def chunks_of(x: torch.Tensor, chunk: int) -> torch.Tensor:
    """Split `[B, T, H, K]` into chunks, `[B H N, C, K]`."""
    return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).reshape(-1, chunk, x.shape[-1])


def tokens_of(x: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Join chunks `[B H N, C, K]` to `[B, T, H, K]`; `shape` is (B, H, N)."""
    return x.unflatten(0, shape).permute(0, 2, 3, 1, 4).flatten(1, 2)


def multiply_(x: torch.Tensor, factor: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Multiply x `[B H N, C, ...]` in place by factor `[B, H or 1, N, C, ...]`; `shape` is (B, H, N)."""
    x.unflatten(0, shape).mul_(factor)
    return x


def multiplied(x: torch.Tensor, factor: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """Multiply as `multiply_` does, into a new tensor."""
    return (x.unflatten(0, shape) * factor).flatten(0, 2)


def decay_gradient(
    dc: torch.Tensor, states: torch.Tensor, last: torch.Tensor, after: torch.Tensor, shape: tuple[int, int, int]
) -> torch.Tensor:
    """Return the gradient of the log decays, `[B, T, H]`.

    Args:
        dc: Gradient of the running sums in each chunk, without their effect on the state after it, `[B H N, C]`; best
            in float64, because its terms cancel when they are summed.
        states: State before each chunk, `[B H N, K, V]`.
        last: State after the last chunk, `[B, H, K, V]`.
        after: Gradient of the state after each chunk, `[B H N, K, V]`.
        shape: (B, H, N).
    """
    following = torch.cat([states.unflatten(0, shape)[:, :, 1:], last[:, :, None]], 2)
    dc = dc.unflatten(0, shape)
    dc[..., -1] += (following * after.unflatten(0, shape)).sum(
        (-1, -2), dtype=torch.float64
    )  # c_C scales the whole state after the chunk
    return (
        dc.flip(-1).cumsum(-1).flip(-1).flatten(2).movedim(1, 2).to(states.dtype)
    )  # g_t is part of every c_i of its chunk with i >= t


def pad_to_chunks(
    tensors: Sequence[torch.Tensor], segment_ids: torch.Tensor | None, chunk: int
) -> tuple[Sequence[torch.Tensor], torch.Tensor | None]:
    """Pad tensors `[B, T, ...]` and segment ids at the end to a whole number of chunks.

    The padding is zero: keys have no weight and decay factors are one, so the state passes through unchanged. The
    padding belongs to the last dialogue.
    """
    padding = -tensors[0].shape[1] % chunk
    if not padding:
        return tensors, segment_ids
    if segment_ids is not None:
        segment_ids = torch.cat([segment_ids, segment_ids[:, -1:].expand(-1, padding)], 1)
    return [F.pad(x, (0, 0) * (x.ndim - 2) + (0, padding)) for x in tensors], segment_ids


class DecayFactors(NamedTuple):
    """Decay factors of the chunked form; zero between different dialogues. H is 1 where all heads share a decay.

    Attributes:
        within: Factor from position j to position i >= j of a chunk, exp(c_i - c_j), `[B, H, N, C, C]`.
        incoming: Factor from the state before a chunk to position i, exp(c_i), `[B, H, N, C]`.
        outgoing: Factor from position j to the state after the chunk, exp(c_C - c_j), `[B, H, N, C]`.
        whole: Factor from the state before a chunk to the state after it, exp(c_C), `[B, H, N]`.
    """

    within: torch.Tensor
    incoming: torch.Tensor
    outgoing: torch.Tensor
    whole: torch.Tensor


def decay_factors(cumulative: torch.Tensor, segment_ids: torch.Tensor | None, chunk: int) -> DecayFactors:
    """Return the decay factors of running sums c `[B, H, N, C]` of the log decays; segment_ids int `[B, T]` or None."""
    total = cumulative[..., -1:]
    masked = ~torch.ones(chunk, chunk, dtype=torch.bool, device=cumulative.device).tril()
    incoming, outgoing, whole = cumulative.exp(), (total - cumulative).exp(), total[..., 0].exp()
    if segment_ids is not None:
        segments = segment_ids.unflatten(1, (-1, chunk))[:, None]  # [B, 1, N, C]
        first, last = segments[..., :1], segments[..., -1:]
        before = torch.cat([first[:, :, :1], last[:, :, :-1]], 2)  # the dialogue of the incoming state
        masked = masked | (segments[..., :, None] != segments[..., None, :])
        incoming = incoming * (segments == before)
        outgoing = outgoing * (segments == last)
        whole = whole * (before == last)[..., 0]
    # Masked before and after exp: exp of -inf is many times slower, and exp of a large sum is not finite.
    differences = cumulative[..., :, None] - cumulative[..., None, :]
    within = differences.masked_fill_(masked, 0).exp_().masked_fill(masked, 0)
    return DecayFactors(within, incoming, outgoing, whole)


def chunked_fast(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `chunked` with `ChunkedRecurrence`, at least in fp32, also under autocast."""
    length = q.shape[1]
    chunk = min(chunk_size, length)
    with torch.autocast(q.device.type, enabled=False):
        tensors = [at_least_float(x) for x in (q, k, v, log_decay)]
        padded, segment_ids = pad_to_chunks(tensors, segment_ids, chunk)
        output, last = ChunkedRecurrence.apply(*padded, segment_ids, state, chunk)
    return output[:, :length], last


def recurrence(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
    form: Form = "auto",
    chunk_size: int = 64,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the recurrence in the form that fits the input; arguments and results are those of `naive`."""
    if form == "naive":
        return naive(q, k, v, log_decay, segment_ids, state)
    if q.shape[1] == 1 and state is not None:
        return step(q, k, v, log_decay, state)
    if fused.available(q):
        return fused.gated_sum(q, k, v, log_decay, segment_ids, state)
    run = chunked_fast if v.dtype == torch.float32 else chunked
    return run(q, k, v, log_decay, segment_ids, state, chunk_size)
