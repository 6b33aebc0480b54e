"""A short causal convolution over the last few tokens, before a mixer: y_t = x_t + sum_i w_i x_{t-i}, per channel.

Neighbouring tokens meet without attention (H3, arXiv 2212.14052; as a residual on the block's input "Canon", arXiv
2512.17351). The state is the last `size - 1` inputs. Dims: B batch, T tokens, D channels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init  # leaves alone what was loaded

from chatbot.model.state import MixerState
from chatbot.native import library as native


@dataclass(frozen=True)
class Tokens:
    """What a mixer is told about the T tokens of its B rows; `None` is the plain case.

    Attributes:
        keep: bool `[B, T]`, False at padding.
        segment_ids: int `[B, T]`, non-decreasing: which packed dialogue a token belongs to. A state given with them is
            of the dialogue of the first token.
        positions: int64 `[B, T]`, position in the dialogue, counted without padding.
    """

    keep: torch.Tensor | None = None
    segment_ids: torch.Tensor | None = None
    positions: torch.Tensor | None = None


class ShortConvolution(nn.Module):
    """Depthwise, with a residual; starts as the identity.

    Args:
        width: Channels D.
        size: Tokens it sees, the current one included.
    """

    def __init__(self, width: int, size: int):
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.empty(size, width))

    def init_weights(self, std: float) -> None:
        init.zeros_(self.weight)

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None) -> torch.Tensor:
        """Mixes `[B, T, D]` with the tokens just before, of the same dialogue.

        Padding stands on either side; with a state, anywhere. There are no segments together with a state.
        """
        compiles = x.device.type == "cpu" and self.weight.dtype == torch.float32
        if state is None and compiles and native.library() is not None:
            x = x.float()  # under autocast the projection before is in bf16
            kept = x if tokens.keep is None else x * tokens.keep[..., None]
            return CompiledConvolution.apply(kept, self.weight, tokens.segment_ids)
        past = x.new_zeros(x.shape[0], self.size - 1, x.shape[2])
        if state is not None:
            past = state.tensors.get("inputs", past)
        if tokens.keep is None or state is None:
            new = x if tokens.keep is None else x * tokens.keep[..., None]
            wide, back = torch.cat([past, new], 1), None
        else:
            wide, back = _without_gaps(x, past, tokens.keep)
        if state is not None:
            state.remember(inputs=wide[:, wide.shape[1] - self.size + 1 :].clone())  # not a view of the whole row
        mixed = taps(wide, self.weight, tokens.segment_ids)
        if back is not None:
            mixed = mixed.gather(1, back[..., None].expand_as(mixed))
        return x + mixed


def taps(wide: torch.Tensor, weight: torch.Tensor, segments: torch.Tensor | None) -> torch.Tensor:
    """sum_i w_i x_{t-i} of `[B, size - 1 + T, D]`; weight `[size, D]`."""
    size = len(weight)
    length = wide.shape[1] - size + 1
    mixed = wide[:, size - 1 :] * weight[0]
    for back in range(1, size):
        earlier = wide[:, size - 1 - back :][:, :length]
        if segments is not None:
            same = segments == F.pad(segments, (back, 0), mode="replicate")[:, :length]
            earlier = earlier * same[..., None]
        mixed = torch.addcmul(mixed, earlier, weight[back])
    return mixed


class CompiledConvolution(torch.autograd.Function):
    """The convolution without a past in one pass over memory, and its gradient."""

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
        if torch.is_grad_enabled():  # a second derivative is wanted
            y = x + taps(F.pad(x, (0, 0, len(weight) - 1, 0)), weight, segments)
            return *torch.autograd.grad(y, (x, weight), gradient, create_graph=True), None
        dx, dw = torch.empty_like(x), torch.zeros_like(weight)
        tensors = [x, gradient.contiguous(), segments, weight, dx, dw]
        native.call("xianliao_convolve_backward", tensors, [*x.shape, len(weight)])
        return dx, dw, None


def _without_gaps(x: torch.Tensor, past: torch.Tensor, keep: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Past and kept tokens together at the end of `[B, size - 1 + T, D]`, and where each token went."""
    remembered, length = past.shape[1], x.shape[1]
    order = keep.long().argsort(dim=1, stable=True)  # padding first, the rest in its order
    padded = (~keep).sum(1, keepdim=True)  # [B, 1]
    column = torch.arange(remembered + length, device=x.device)[None]
    source = torch.where(column < padded + remembered, (column - padded).clamp_min(0), column)
    moved = torch.cat([past, x.gather(1, order[..., None].expand_as(x))], 1)
    return moved.gather(1, source[..., None].expand_as(moved)), order.argsort(1)
