"""Cross-entropy of the output head in pieces: the logits of a whole batch never exist at once.

They would be the largest tensor of a training step by far, read and written several times. Here a few hundred rows at a
time go from hidden state to loss to gradient while they are in the processor's cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from chatbot.model.end_head import End
from chatbot.model.precision import at_least_float
from chatbot.text.layouts import IGNORED_LABEL

NEVER = -1e4
"""A logit that has no probability in fp32, and no infinity to spoil a product with zero."""

LOGITS = 2**22
"""Logits that exist at a time."""

SHAPE_STEP = 64
"""Rows are filled up to a multiple of this: on CPUs a bf16 product keeps what it prepared for each shape it ever had, which
came to 15 GB where the number of targets was another in every step."""


def next_token_loss(
    hidden: torch.Tensor,
    head: tuple[torch.Tensor, torch.Tensor | None],
    labels: torch.Tensor,
    items: float | torch.Tensor | None,
    form: str,
    smoothing: torch.Tensor | None,
    end: End | None = None,
    end_id: int | None = None,
) -> torch.Tensor:
    """Nats of the next tokens over the positions that carry loss, summed and divided.

    Args:
        hidden: `[B, T, D]`, after the last norm.
        head: Weight `[V, D]` and bias `[V]` or None of the output head.
        labels: int64 `[B, T]`, not shifted, -100 where there is no loss.
        items: What the sum is divided by; None is the number of these targets.
        form: `auto`, or `naive`, which is twice differentiable.
        smoothing: `smoothed_mass`, or None.
        end: What a self-terminating head says at each position, `[B, T]`; the softmax is then over the other tokens.
        end_id: The end of turn.
    """
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)  # shifted, so that nothing need be copied
    counted = targets != IGNORED_LABEL
    items = counted.sum() if items is None else items
    of_end = 0.0
    if end is not None:
        is_end = targets == end_id
        of_end = -torch.where(is_end, end.log_end, end.log_going)[counted].sum()
        counted = counted & ~is_end
        head = (head[0], _without(end_id, *head))
    hidden, targets = hidden[counted], targets[counted]
    if form == "naive":
        log_p = at_least_float(F.linear(hidden, *head)).log_softmax(-1)
        loss = -log_p.gather(1, targets[:, None]).sum()
        if smoothing is not None:
            share = smoothing.to(log_p)
            smoothed = share[targets] > 0
            loss = -torch.where(smoothed, 1 - share.sum(), 1.0) @ log_p.gather(1, targets[:, None])[:, 0]
            loss = loss - (log_p[smoothed] @ share).sum()
    else:
        loss = head_loss(hidden, *head, targets, smoothing)
    return (loss + of_end) / items


def _without(token: int, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """A bias `[V]` that leaves a token no probability."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return bias.index_fill(0, torch.tensor(token, device=bias.device), NEVER)


def smoothing_for(config, share: float, device: torch.device) -> torch.Tensor | None:
    """Where label smoothing puts its share: not on padding, [CLS] and the end of turn; None without."""
    ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    return smoothed_mass(config.vocab_size, share, ids, device) if share else None


def smoothed_mass(vocab_size: int, share: float, left_out: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """`[V]` fp32: the part of the target distribution that label smoothing takes from the target and spreads evenly.

    Args:
        vocab_size: V.
        share: Its sum.
        left_out: Ids without mass: padding, [CLS] and the end of turn. Targets with these ids are not smoothed.
        device: Where it lies.
    """
    mass = torch.ones(vocab_size, device=device)
    mass[list(left_out)] = 0
    return mass * (share / mass.sum())


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    smoothing: torch.Tensor | None = None,
):
    """Sum over the rows of -sum_v t(v) log softmax(W h + b)(v), in nats; t is the target alone, or smoothed.

    Args:
        hidden: `[N, D]`, fp32 or under autocast.
        weight: `[V, D]`.
        bias: `[V]` or None.
        targets: int64 `[N]`, each below V.
        smoothing: `smoothed_mass` `[V]`; a target with mass keeps 1 - its sum, a target without mass is not smoothed.

    Returns:
        fp32 scalar (fp64 when the model is). Differentiable once.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if not torch.is_grad_enabled():  # inside, the parameters would still ask for gradients
        hidden, weight, bias = (None if tensor is None else tensor.detach() for tensor in (hidden, weight, bias))
    return HeadLoss.apply(hidden, weight, bias, targets, smoothing)


class HeadLoss(torch.autograd.Function):
    """Takes the gradients while the logits are there: d loss / d logits = softmax - one-hot."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, smoothing):
        wanted = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        of_hidden, of_weight, of_bias = (  # sums over the pieces in fp32
            torch.zeros_like(t, dtype=wide) if want else None
            for t, want in zip((hidden, weight, bias), wanted, strict=True)
        )
        matrix = weight.to(hidden.dtype)
        rows = max(64, LOGITS // len(weight))
        loss = hidden.new_zeros((), dtype=wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                size, rest = len(hidden[part]), -len(hidden[part]) % SHAPE_STEP
                given = fill_up(hidden[part], rest)
                logits = (given @ matrix.T)[:size].to(wide)
                if bias is not None:
                    logits += bias
                nats, slope = to_slope(logits, targets[part], smoothing)
                loss += nats
                if not any(wanted):
                    continue
                if of_bias is not None:
                    of_bias += slope.sum(0)
                slope = fill_up(slope.to(hidden.dtype), rest)
                if of_hidden is not None:
                    of_hidden[part] = (slope @ matrix)[:size]
                if of_weight is not None and slope.dtype == wide:
                    of_weight.addmm_(slope.T, given)
                elif of_weight is not None:
                    of_weight += slope.T @ given
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if saved is None else (saved * gradient).to(dtype) for saved, dtype in pairs), None, None


def fill_up(rows: torch.Tensor, rest: int) -> torch.Tensor:
    """Rows `[N, D]` with `rest` rows of zeros after them."""
    return F.pad(rows, (0, 0, 0, rest)) if rest else rows


def to_slope(logits: torch.Tensor, targets: torch.Tensor, smoothing: torch.Tensor | None):
    """Return the summed loss of logits `[N, V]`, fp32, and its gradient softmax - t, which overwrites the logits.

    Targets without smoothing mass, such as the end of turn, are not smoothed: t is one-hot there. So the optimum has the
    true p(end of turn); smoothing those targets too would lower it by the factor 1 - share and lengthen replies.
    """
    chosen = targets[:, None]
    kept = torch.ones_like(chosen, dtype=logits.dtype)
    spread = torch.zeros_like(kept)
    smoothed = torch.zeros_like(chosen, dtype=torch.bool)
    if smoothing is not None:
        share = smoothing.to(logits.dtype)
        smoothed = share[chosen] > 0
        kept = torch.where(smoothed, 1.0 - share.sum(), kept)
        spread = torch.where(smoothed, (logits @ share)[:, None], spread)
    largest = logits.amax(1, keepdim=True)
    at_target = kept * logits.gather(1, chosen) + spread
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    nats = (total.log() + largest - at_target).sum()
    slope = logits.div_(total).scatter_add_(1, chosen, -kept)
    if smoothing is not None:
        slope.sub_(smoothed * smoothing.to(slope.dtype))
    return nats, slope
