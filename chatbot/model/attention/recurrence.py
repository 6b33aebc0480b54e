"""The decayed linear recurrence and its three forms: what all linear mixers but the delta rule compute.

    S_t = exp(g_t) S_{t-1} + k_t v_t^T          o_t = S_t^T q_t

per head, with the log decay g_t <= 0. g = 0 is the plain sum of arXiv 2006.16236 (eq. 10), a fixed g (one rate a head)
RetNet's (arXiv 2307.08621, eq. 5); a scalar g_t from the input Mamba-2's and simple GLA's (arXiv 2405.21060, eq. 16;
arXiv 2312.06635).

Packed dialogues (`segment_ids`) start from an empty state. Padding is a token with k = 0 and g = 0.
Dims: B batch, T tokens, H heads, K width of query and key, V width of value, N chunks, C tokens a chunk.
"""

from __future__ import annotations

from collections.abc import Sequence

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
    """The definition, one position at a time: o_i = sum_{j<=i} exp(g_{j+1} + ... + g_i) (q_i . k_j) v_j.

    Args:
        q, k: `[B, T, H, K]`.
        v: `[B, T, H, V]`.
        log_decay: `[B, T, H]`, <= 0, or `[B, T, 1]` for all heads.
        segment_ids: int `[B, T]`, non-decreasing: which packed dialogue a token belongs to. `None` is one dialogue.
        state: `[B, H, K, V]` before the first token, of the same dialogue as the first token. `None` is empty.

    Returns:
        o `[B, T, H, V]` and the state `[B, H, K, V]` after the last token, fp32.
    """
    length = q.shape[1]
    outputs = []
    for i in range(length):
        past = slice(0, i + 1)
        weight = remaining(log_decay[:, past])  # [B, i+1, H]
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
    weight = remaining(log_decay)
    if segment_ids is not None:
        weight = weight * (segment_ids == segment_ids[:, -1:])[..., None]
    last = torch.einsum("bjh,bjhk,bjhv->bhkv", weight, at_least_float(k), at_least_float(v))
    if state is not None:
        carried = at_least_float(log_decay).sum(1).exp()
        if segment_ids is not None:
            carried = carried * (segment_ids[:, -1] == segment_ids[:, 0])[:, None]
        last = last + carried[..., None, None] * state
    return torch.stack(outputs, 1), last


def remaining(log_decay: torch.Tensor) -> torch.Tensor:
    """exp(g_{j+1} + ... + g_T) for every j, `[B, T, H]`, summed from the end.

    A difference of sums from the start loses a digit or two where those sums are large.
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
    """`naive` in blocks: matrix products inside a chunk, the state between chunks. Same arguments and results.

    Values of later positions are multiplied by zero, so a NaN (not a large number) in one spoils its whole chunk.
    """
    batch, length, heads, _ = q.shape
    chunk = min(chunk_size, length)
    (q, k, v, log_decay), segment_ids = pad_to_chunks((q, k, v, log_decay), segment_ids, chunk)
    blocks = q.shape[1] // chunk

    def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, ...] -> [B, H, N, C, ...]
        return x.unflatten(1, (blocks, chunk)).movedim(3, 1)

    q, k, v, cumulative = split(q), split(k), split(v), split(at_least_float(log_decay)).cumsum(-1)
    decay, into, onto, through = decay_factors(cumulative, segment_ids, chunk)
    scores = (q @ k.transpose(-1, -2)) * decay
    output = scores.to(v.dtype) @ v  # [B, H, N, C, V]
    update = (k * onto[..., None].to(k.dtype)).transpose(-1, -2) @ v  # [B, H, N, K, V]
    states = []
    wide = torch.promote_types(q.dtype, torch.float32)
    carry = q.new_zeros(batch, heads, q.shape[-1], v.shape[-1], dtype=wide) if state is None else state
    for block in range(blocks):
        states.append(carry)
        carry = through[:, :, block, None, None] * carry + at_least_float(update[:, :, block])
    output = output + (q * into[..., None].to(q.dtype)) @ torch.stack(states, 2).to(q.dtype)
    return output.movedim(1, 3).flatten(1, 2)[:, :length], carry


def step(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, log_decay: torch.Tensor, state: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """One token: q, k `[B, 1, H, K]`, v `[B, 1, H, V]`, log_decay `[B, 1, H]`, state `[B, H, K, V]` fp32.

    Returns:
        o `[B, 1, H, V]` and the new state; constant time and memory, however long the dialogue.
    """
    new = at_least_float(k[:, 0, :, :, None]) * at_least_float(v[:, 0, :, None, :])
    state = at_least_float(log_decay[:, 0, :, None, None]).exp() * state + new
    output = (at_least_float(q[:, 0, :, None, :]) @ state).squeeze(2)
    return output[:, None].to(v.dtype), state


class ChunkedRecurrence(torch.autograd.Function):
    """`chunked` in fp32 with its gradient by hand: half the time of autograd's, for what it need not keep or redo.

    Inside a chunk o_i depends on the decays through exp(c_i) q_i and exp(-c_j) k_j alone, c being the running sum of g,
    so dc_i = q_i.dq_i - k_i.dk_i; see `decay_gradient`. Not twice differentiable: gradient penalties take `naive`.
    """

    @staticmethod
    def forward(ctx, q, k, v, log_decay, segment_ids, state, chunk: int):
        batch, length, heads, _ = q.shape
        shape = (batch, heads, length // chunk)

        def split(x: torch.Tensor) -> torch.Tensor:  # [B, T, H, K] -> [B H N, C, K]
            return x.unflatten(1, (-1, chunk)).permute(0, 3, 1, 2, 4).reshape(-1, chunk, x.shape[-1])

        q, k, v = split(q), split(k), split(v)
        cumulative = log_decay.unflatten(1, (-1, chunk)).movedim(3, 1).cumsum(-1)  # [B, H, N, C]
        decay, into, onto, through = decay_factors(cumulative, segment_ids, chunk)
        into, onto = into[..., None], onto[..., None]
        scores = weigh(torch.bmm(q, k.mT), decay, shape)
        output = torch.bmm(scores, v)
        update = torch.bmm(weighed(k, onto, shape).mT, v).unflatten(0, shape)
        states = torch.empty_like(update)
        carry = torch.zeros_like(update[:, :, 0]) if state is None else at_least_float(state)
        for block in range(shape[2]):
            states[:, :, block] = carry
            carry = torch.addcmul(update[:, :, block], through[:, :, block, None, None], carry)
        states = states.flatten(0, 2)
        output.baddbmm_(weighed(q, into, shape), states)
        ctx.save_for_backward(q, k, v, decay, scores, into, onto, through, states, carry)
        ctx.shape, ctx.has_state = shape, state is not None
        return output.unflatten(0, shape).permute(0, 2, 3, 1, 4).reshape(batch, length, heads, -1), carry

    @staticmethod
    @once_differentiable
    def backward(ctx, output_gradient, last_gradient):
        q, k, v, decay, scores, into, onto, through, states, last = ctx.saved_tensors
        (batch, heads, blocks), chunk, shape = ctx.shape, q.shape[1], ctx.shape
        do = output_gradient.unflatten(1, (blocks, chunk)).permute(0, 3, 1, 2, 4).reshape(-1, chunk, v.shape[-1])
        # Gradient of the state after each chunk, from the last to the first.
        from_output = torch.bmm(weighed(q, into, shape).mT, do).unflatten(0, shape)
        after = torch.empty_like(from_output)
        carry = last_gradient
        for block in reversed(range(blocks)):
            after[:, :, block] = carry
            carry = torch.addcmul(from_output[:, :, block], through[:, :, block, None, None], carry)
        after = after.flatten(0, 2)
        dv = torch.bmm(scores.mT, do).baddbmm_(weighed(k, onto, shape), after)
        inner = weigh(torch.bmm(do, v.mT), decay, shape)
        dq = weigh(torch.bmm(do, states.mT), into, shape).baddbmm_(inner, k)
        dk = weigh(torch.bmm(v, after.mT), onto, shape).baddbmm_(inner.mT, q)
        dg = None
        if ctx.needs_input_grad[3]:
            dc = (q * dq).sum(-1).sub_((k * dk).sum(-1))
            dg = decay_gradient(dc, states, last, after, shape)
            dg = dg if decay.shape[1] == heads else dg.sum(2, keepdim=True)

        def join(x: torch.Tensor) -> torch.Tensor:  # [B H N, C, K] -> [B, T, H, K]
            return x.unflatten(0, shape).permute(0, 2, 3, 1, 4).reshape(batch, blocks * chunk, heads, -1)

        return join(dq), join(dk), join(dv), dg, None, carry if ctx.has_state else None, None


def weigh(x: torch.Tensor, factor: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """x `[B H N, C, ...]` times factor `[B, H or 1, N, C, ...]`, in place."""
    x.unflatten(0, shape).mul_(factor)
    return x


def weighed(x: torch.Tensor, factor: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
    """`weigh` as a new tensor."""
    return (x.unflatten(0, shape) * factor).flatten(0, 2)


def decay_gradient(dc, states, last, after, shape) -> torch.Tensor:
    """Gradient of the log decays `[B, T, H]`.

    Args:
        dc: Of the running sums in each chunk, but for their part in the state after it: `[B H N, C]`.
        states: Before each chunk, `[B H N, K, V]`.
        last: After the last one, `[B, H, K, V]`.
        after: Gradient of the state after each chunk, `[B H N, K, V]`.
        shape: B, H, N.
    """
    following = torch.cat([states.unflatten(0, shape)[:, :, 1:], last[:, :, None]], 2)
    dc = dc.unflatten(0, shape)
    dc[..., -1] += (following * after.unflatten(0, shape)).sum((-1, -2))  # the whole state decays by the last sum
    return dc.flip(-1).cumsum(-1).flip(-1).flatten(2).movedim(1, 2)  # g_t is in every c_i of its chunk with i >= t


def pad_to_chunks(tensors: Sequence[torch.Tensor], segment_ids: torch.Tensor | None, chunk: int):
    """Tensors `[B, T, ...]` and segment ids, filled up to whole chunks.

    What is added is zero: keys without weight and decays of one, so the state passes through; it belongs to the last
    dialogue.
    """
    padding = -tensors[0].shape[1] % chunk
    if not padding:
        return tensors, segment_ids
    if segment_ids is not None:
        segment_ids = torch.cat([segment_ids, segment_ids[:, -1:].expand(-1, padding)], 1)
    return [F.pad(x, (0, 0) * (x.ndim - 2) + (0, padding)) for x in tensors], segment_ids


def decay_factors(cumulative: torch.Tensor, segment_ids: torch.Tensor | None, chunk: int) -> tuple[torch.Tensor, ...]:
    """What remains at position i of a chunk of position j (decay `[B, H, N, C, C]`), of the state before the chunk (into
    `[B, H, N, C]`), in the state after it of position j (onto `[B, H, N, C]`) and of the state before (`[B, H, N]`)."""
    total = cumulative[..., -1:]
    hidden = ~torch.ones(chunk, chunk, dtype=torch.bool, device=cumulative.device).tril()
    into, onto, through = cumulative.exp(), (total - cumulative).exp(), total[..., 0].exp()
    if segment_ids is not None:
        segments = segment_ids.unflatten(1, (-1, chunk))[:, None]  # [B, 1, N, C]
        first, last = segments[..., :1], segments[..., -1:]
        before = torch.cat([first[:, :, :1], last[:, :, :-1]], 2)  # the dialogue of the incoming state
        hidden = hidden | (segments[..., :, None] != segments[..., None, :])
        into = into * (segments == before)
        onto = onto * (segments == last)
        through = through * (before == last)[..., 0]
    # Zero before exp and again after: exp of -inf, and of what may overflow, is many times slower or not a number.
    inside = cumulative[..., :, None] - cumulative[..., None, :]
    return inside.masked_fill_(hidden, 0).exp_().masked_fill(hidden, 0), into, onto, through


def chunked_fast(q, k, v, log_decay, segment_ids=None, state=None, chunk_size: int = 64):
    """`chunked` through `ChunkedRecurrence`, in fp32, under autocast too."""
    length = q.shape[1]
    chunk = min(chunk_size, length)
    with torch.autocast(q.device.type, enabled=False):
        tensors = [at_least_float(x) for x in (q, k, v, log_decay)]
        tensors, segment_ids = pad_to_chunks(tensors, segment_ids, chunk)
        output, last = ChunkedRecurrence.apply(*tensors, segment_ids, state, chunk)
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
    """The form that fits: arguments and results of `naive`."""
    if form == "naive":
        return naive(q, k, v, log_decay, segment_ids, state)
    if q.shape[1] == 1 and state is not None:
        return step(q, k, v, log_decay, state)
    if fused.available(q):
        return fused.gated_sum(q, k, v, log_decay, segment_ids, state)
    run = chunked_fast if v.dtype == torch.float32 else chunked
    return run(q, k, v, log_decay, segment_ids, state, chunk_size)
