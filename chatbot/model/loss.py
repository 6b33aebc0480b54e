"""Cross-entropy of the output head in pieces: the logits of a whole batch never exist at once.

All logits together would be by far the largest tensor of a training step, and be read and written several times. Here a
few hundred rows at a time pass from hidden state to loss to gradient while they are in the processor's cache.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from chatbot.model.attention.mixer import Form
from chatbot.model.end_head import EndLogProbs
from chatbot.model.precision import at_least_float
from chatbot.model.protocol import ModelConfig
from chatbot.text.layouts import IGNORED_LABEL

MASKED_LOGIT = -1e4
"""A logit with probability zero in fp32; finite, because infinity times zero is not a number."""

MAX_LOGITS = 2**22
"""Maximum number of logits that are in memory at a time."""

ROW_MULTIPLE = 64
"""Pieces are padded to a multiple of this many rows. On CPUs, a bf16 product caches memory for every shape that it has
seen. When every step had a different number of targets, the cache grew to 15 GB."""


def next_token_loss(
    hidden: torch.Tensor,
    head: tuple[torch.Tensor, torch.Tensor | None],
    labels: torch.Tensor,
    items: float | torch.Tensor | None,
    form: Form,
    smoothing: torch.Tensor | None,
    end: EndLogProbs | None = None,
    end_id: int | None = None,
) -> torch.Tensor:
    """Return the loss of the next tokens: the sum of their nats, divided by `items`.

    Args:
        hidden: `[B, T, D]`, after the last norm.
        head: Weight `[V, D]` and bias `[V]` or None of the output head.
        labels: int64 `[B, T]`, not shifted, -100 without loss.
        items: Divisor of the sum; None means the number of targets.
        form: `auto`, or `naive`, which is twice differentiable.
        smoothing: `smoothed_mass`, or None.
        end: Log-probabilities of an end head; the softmax is then over the other tokens.
        end_id: Id of the end of turn; needed with `end`.

    Returns:
        Scalar, at least fp32.
    """
    # The labels are shifted and not the hidden states, so that `hidden` need not be copied.
    targets = F.pad(labels[:, 1:], (0, 1), value=IGNORED_LABEL)
    counted = targets != IGNORED_LABEL
    items = counted.sum() if items is None else items
    end_loss: torch.Tensor | float = 0.0
    if end is not None:
        assert end_id is not None
        is_end = targets.eq(end_id)
        end_loss = -torch.where(is_end, end.log_end, end.log_continue)[counted].sum()
        counted = counted & ~is_end
        head = (head[0], _bias_without(end_id, *head))
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
    return (loss + end_loss) / items


def _bias_without(token: int, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Return a bias `[V]` that gives a token probability zero."""
    bias = weight.new_zeros(len(weight)) if bias is None else bias
    return bias.index_fill(0, torch.tensor(token, device=bias.device), MASKED_LOGIT)


def smoothing_for(config: ModelConfig, share: float, device: torch.device) -> torch.Tensor | None:
    """Return `smoothed_mass` that excludes padding, [CLS] and the end of turn; None if `share` is 0."""
    ids = (config.pad_token_id, config.bos_token_id, config.eos_token_id)
    excluded = tuple(token for token in ids if token is not None)
    return smoothed_mass(config.vocab_size, share, excluded, device) if share else None


def smoothed_mass(vocab_size: int, share: float, excluded_ids: tuple[int, ...], device: torch.device) -> torch.Tensor:
    """Return the part of the target distribution that label smoothing moves from the target to all tokens evenly.

    Only targets whose token can receive smoothing mass give up mass. The end of turn neither receives nor gives up
    mass, so at the optimum it has its true probability; see `loss_and_slope_`.

    Args:
        vocab_size: V.
        share: Sum of the mass, between 0 and 1.
        excluded_ids: Ids that receive no mass: padding, [CLS] and the end of turn.
        device: Device of the result.

    Returns:
        fp32 `[V]`.
    """
    mass = torch.ones(vocab_size, device=device)
    mass[list(excluded_ids)] = 0
    return mass * (share / mass.sum())


def head_loss(
    hidden: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    targets: torch.Tensor,
    smoothing: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the sum over the rows of -sum_v t(v) log softmax(W h + b)(v), in nats.

    t is one at the target. With smoothing, the target's entry is 1 - share plus its smoothed mass, if the target's
    token has smoothed mass.

    Args:
        hidden: `[N, D]`, fp32 or under autocast.
        weight: `[V, D]`.
        bias: `[V]` or None.
        targets: int64 `[N]`, each below V.
        smoothing: `smoothed_mass` `[V]`, whose sum is the share; targets that have no mass in it are not smoothed.

    Returns:
        fp32 scalar (fp64 if the model is fp64). Differentiable once.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if not torch.is_grad_enabled():  # inside the function, the parameters would still require gradients
        hidden, weight = hidden.detach(), weight.detach()
        bias = None if bias is None else bias.detach()
    return HeadLoss.apply(hidden, weight, bias, targets, smoothing)


class HeadLoss(torch.autograd.Function):
    """Loss that computes its gradients while the logits exist: d loss / d logits = softmax - t."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets, smoothing):
        needs_gradient = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
        wide = torch.promote_types(hidden.dtype, torch.float32)
        d_hidden, d_weight, d_bias = (  # summed over the pieces in fp32
            torch.zeros_like(t, dtype=wide) if needed else None
            for t, needed in zip((hidden, weight, bias), needs_gradient, strict=True)
        )
        matrix = weight.to(hidden.dtype)
        rows = max(64, MAX_LOGITS // len(weight))
        loss = hidden.new_zeros((), dtype=wide)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                size, padding = len(hidden[part]), -len(hidden[part]) % ROW_MULTIPLE
                piece = pad_rows(hidden[part], padding)
                logits = (piece @ matrix.T)[:size].to(wide)
                if bias is not None:
                    logits += bias
                nats, slope = loss_and_slope_(logits, targets[part], smoothing)
                loss += nats
                if not any(needs_gradient):
                    continue
                if d_bias is not None:
                    d_bias += slope.sum(0)
                slope = pad_rows(slope.to(hidden.dtype), padding)
                if d_hidden is not None:
                    d_hidden[part] = (slope @ matrix)[:size]
                if d_weight is not None and slope.dtype == wide:
                    d_weight.addmm_(slope.T, piece)
                elif d_weight is not None:
                    d_weight += slope.T @ piece
        ctx.save_for_backward(d_hidden, d_weight, d_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if saved is None else (saved * gradient).to(dtype) for saved, dtype in pairs), None, None


def pad_rows(rows: torch.Tensor, padding: int) -> torch.Tensor:
    """Append `padding` rows of zeros to `[N, D]`."""
    return F.pad(rows, (0, 0, 0, padding)) if padding else rows


def loss_and_slope_(
    logits: torch.Tensor, targets: torch.Tensor, smoothing: torch.Tensor | None
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the summed loss of logits `[N, V]`, at least fp32, and its gradient softmax - t, which overwrites them.

    Targets without smoothing mass, such as the end of turn, are not smoothed: t is one-hot there. So at the optimum
    p(end of turn) is the true one. If these targets were smoothed too, this probability would be lower by the factor
    1 - share, and replies would be longer.
    """
    target_column = targets[:, None]
    target_share = torch.ones_like(target_column, dtype=logits.dtype)
    at_mass = torch.zeros_like(target_share)
    smoothed = torch.zeros_like(target_column, dtype=torch.bool)
    if smoothing is not None:
        share = smoothing.to(logits.dtype)
        smoothed = share[target_column] > 0
        target_share = torch.where(smoothed, 1.0 - share.sum(), target_share)
        at_mass = torch.where(smoothed, (logits @ share)[:, None], at_mass)
    largest = logits.amax(1, keepdim=True)
    at_target = target_share * logits.gather(1, target_column) + at_mass
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    nats = (total.log() + largest - at_target).sum()
    slope = logits.div_(total).scatter_add_(1, target_column, -target_share)
    if smoothing is not None:
        slope.sub_(smoothed * smoothing.to(slope.dtype))
    return nats, slope
