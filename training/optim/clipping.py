"""Gradient clipping: `norm` and `soft` of 苏剑林, "为什么梯度裁剪能加速训练过程？" (kexue.fm/archives/7469).

    norm: g min(1, gamma / ||g||)        soft: g gamma / (||g|| + gamma)        norm / 2 <= soft <= norm

Both follow Zhang et al. (ICLR 2020, arXiv 1905.11881). Call once per optimizer step, on the accumulated gradient.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Literal

import torch


@torch.no_grad()
def clip_gradients(
    parameters: Iterable[torch.nn.Parameter], kind: Literal["none", "norm", "soft"], clip_norm: float
) -> float:
    """Scale the gradients in place.

    If an entry is infinite or NaN, so is the norm, and the scaled gradients have NaN (infinity times 0). Callers must not
    take a step then; `training.step.take_step` raises instead.

    Args:
        parameters: Parameters; those without a gradient are skipped.
        kind: Formula; `none` only measures the norm.
        clip_norm: gamma, in the unit of the gradient's norm.

    Returns:
        Norm over all gradients before clipping; 0 if no parameter has a gradient.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        return 0.0
    norm = torch.nn.utils.get_total_norm(gradients)
    norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # a model sharded over processes
    if kind == "norm":
        scale = (clip_norm / (norm + 1e-12)).clamp(max=1.0)
    elif kind == "soft":
        scale = clip_norm / (norm + clip_norm)
    else:
        return norm.item()
    torch._foreach_mul_(gradients, scale.to(gradients[0].dtype))
    return norm.item()
