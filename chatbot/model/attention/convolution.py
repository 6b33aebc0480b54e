"""Short causal convolution over the last few tokens, before a mixer: y_t = x_t + sum_i w_i x_{t-i}, per channel.

It lets neighbouring tokens interact without attention (H3, arXiv 2212.14052; as a residual on the input of the block
"Canon", arXiv 2512.17351). The state holds the last `size - 1` inputs. Dims: B batch, T tokens, D channels.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init  # does not overwrite loaded weights

from chatbot.model.attention.tokens import Tokens
from chatbot.model.state import MixerState
from chatbot.native import library as native


class ShortConvolution(nn.Module):
    """Depthwise convolution with a residual; its initial weights make it the identity.

    Args:
        width: Number of channels D.
        size: Number of tokens that each output sees, the current one included.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size, width))

    def init_weights(self, std: float) -> None:
        init.zeros_(self.weight)

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None) -> torch.Tensor:
        """Mix `[B, T, D]` with the preceding tokens of the same dialogue.

        Without a state, padding may be at the start or end of a row; with a state, anywhere. Segments and a state
        exclude each other.
        """
        if state is None and x.device.type == "cpu" and self.weight.dtype == torch.float32 and native.library():
            x = x.float()  # under autocast the preceding projection returns bf16
            masked = x if tokens.keep is None else x * tokens.keep[..., None]
            return CompiledConvolution.apply(masked, self.weight, tokens.segment_ids)
        past = x.new_zeros(x.shape[0], self.size - 1, x.shape[2])
        if state is not None:
            past = state.tensors.get("inputs", past)
        if tokens.keep is None or state is None:
            masked = x if tokens.keep is None else x * tokens.keep[..., None]
            extended, restore = torch.cat([past, masked], 1), None
        else:
            extended, restore = _without_gaps(x, past, tokens.keep)
        if state is not None:
            state.remember(
                inputs=extended[:, extended.shape[1] - self.size + 1 :].clone()
            )  # a view would keep the whole row in memory
        mixed = weighted_sum(extended, self.weight, tokens.segment_ids)
        if restore is not None:
            mixed = mixed.gather(1, restore[..., None].expand_as(mixed))
        return x + mixed


def weighted_sum(extended: torch.Tensor, weight: torch.Tensor, segments: torch.Tensor | None) -> torch.Tensor:
    """Return sum_i w_i x_{t-i}, `[B, T, D]`.

    Args:
        extended: The inputs with the `size - 1` inputs before them, `[B, size - 1 + T, D]`.
        weight: `[size, D]`.
        segments: int `[B, T]`, index of the dialogue that each input belongs to, or None.
    """
    size = len(weight)
    length = extended.shape[1] - size + 1
    mixed = extended[:, size - 1 :] * weight[0]
    for back in range(1, size):
        earlier = extended[:, size - 1 - back :][:, :length]
        if segments is not None:
            same = segments == F.pad(segments, (back, 0), mode="replicate")[:, :length]
            earlier = earlier * same[..., None]
        mixed = torch.addcmul(mixed, earlier, weight[back])
    return mixed


class CompiledConvolution(torch.autograd.Function):
    """The convolution of whole rows and its gradient, each in one pass over memory (`chatbot/native/step.c`)."""

    @staticmethod
    def forward(ctx, x, weight, segment_ids):
        x, weight = x.contiguous(), weight.contiguous()
        segments = None if segment_ids is None else segment_ids.to(torch.int64).contiguous()
        y = torch.empty_like(x)
        native.call("xianliao_convolve", [x, segments, weight, y], [*x.shape, len(weight)])
        ctx.save_for_backward(x, weight, segments)
        return y

    @staticmethod
    def backward(ctx, gradient):
        x, weight, segments = ctx.saved_tensors
        if torch.is_grad_enabled():  # the caller needs a second derivative
            y = x + weighted_sum(F.pad(x, (0, 0, len(weight) - 1, 0)), weight, segments)
            return *torch.autograd.grad(y, (x, weight), gradient, create_graph=True), None
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        tensors = [x, gradient.contiguous(), segments, weight, dx, dw]
        native.call("xianliao_convolve_backward", tensors, [*x.shape, len(weight)])
        return dx, dw, None


def _without_gaps(x: torch.Tensor, past: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move the padding of each row to its front, so that the past is directly before the real tokens.

    Args:
        x: New inputs, `[B, T, D]`.
        past: `[B, size - 1, D]`.
        keep: bool `[B, T]`, False at padding.

    Returns:
        `[B, size - 1 + T, D]`, which ends with the past and the real tokens, and the index that restores the order of
        the T outputs, int64 `[B, T]`.
    """
    remembered, length = past.shape[1], x.shape[1]
    order = keep.long().argsort(dim=1, stable=True)  # padding first, then the real tokens in their order
    padded = (~keep).sum(1, keepdim=True)  # [B, 1]
    column = torch.arange(remembered + length, device=x.device)[None]
    source = torch.where(column < padded + remembered, (column - padded).clamp_min(0), column)
    moved = torch.cat([past, x.gather(1, order[..., None].expand_as(x))], 1)
    return moved.gather(1, source[..., None].expand_as(moved)), order.argsort(1)
