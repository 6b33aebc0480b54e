"""Cross-entropy of the output head in pieces: the logits of a whole batch never exist at once.

They would be the largest tensor of a training step by far, read and written several times. Here a few hundred rows at a
time go from hidden state to loss to gradient while they are in the processor's cache.
"""

from __future__ import annotations

import torch
from torch.autograd.function import once_differentiable

LOGITS = 2**22
"""Logits that exist at a time."""


def head_loss(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, targets: torch.Tensor):
    """Sum over the rows of -log softmax(W h + b)[target], in nats.

    Args:
        hidden: `[N, D]`, fp32 or under autocast.
        weight: `[V, D]`.
        bias: `[V]` or None.
        targets: int64 `[N]`, each below V.

    Returns:
        fp32 scalar. Differentiable once.
    """
    if torch.is_autocast_enabled(hidden.device.type):
        hidden = hidden.to(torch.get_autocast_dtype(hidden.device.type))
    if not torch.is_grad_enabled():  # inside, the parameters would still ask for gradients
        hidden, weight, bias = (None if tensor is None else tensor.detach() for tensor in (hidden, weight, bias))
    return HeadLoss.apply(hidden, weight, bias, targets)


class HeadLoss(torch.autograd.Function):
    """Takes the gradients while the logits are there: d loss / d logits = softmax - one-hot."""

    @staticmethod
    def forward(ctx, hidden, weight, bias, targets):
        wanted = [tensor is not None and tensor.requires_grad for tensor in (hidden, weight, bias)]
        of_hidden, of_weight, of_bias = (  # sums over the pieces in fp32
            torch.zeros_like(t, dtype=torch.float32) if want else None
            for t, want in zip((hidden, weight, bias), wanted, strict=True)
        )
        matrix = weight.to(hidden.dtype)
        rows = max(64, LOGITS // len(weight))
        loss = hidden.new_zeros((), dtype=torch.float32)
        with torch.autocast(hidden.device.type, enabled=False):
            for start in range(0, len(hidden), rows):
                part = slice(start, start + rows)
                logits = (hidden[part] @ matrix.T).float()
                if bias is not None:
                    logits += bias
                nats, slope = to_slope(logits, targets[part])
                loss += nats
                if not any(wanted):
                    continue
                if of_bias is not None:
                    of_bias += slope.sum(0)
                slope = slope.to(hidden.dtype)
                if of_hidden is not None:
                    of_hidden[part] = slope @ matrix
                if of_weight is not None and slope.dtype == torch.float32:
                    of_weight.addmm_(slope.T, hidden[part])
                elif of_weight is not None:
                    of_weight += slope.T @ hidden[part]
        ctx.save_for_backward(of_hidden, of_weight, of_bias)
        ctx.dtypes = [None if tensor is None else tensor.dtype for tensor in (hidden, weight, bias)]
        return loss

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        pairs = zip(ctx.saved_tensors, ctx.dtypes, strict=True)
        return *(None if saved is None else (saved * gradient).to(dtype) for saved, dtype in pairs), None


def to_slope(logits: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The summed loss of logits `[N, V]`, fp32, and its gradient softmax - one-hot, which takes their place."""
    chosen = targets[:, None]
    largest = logits.amax(1, keepdim=True)
    at_target = logits.gather(1, chosen) - largest
    total = logits.sub_(largest).exp_().sum(1, keepdim=True)
    nats = (total.log() - at_target).sum()
    return nats, logits.div_(total).scatter_add_(1, chosen, torch.full_like(total, -1.0))
