"""Int8 weights: rounding, and the form in which a checkpoint stores them."""

from __future__ import annotations

import torch
from safetensors.torch import load_file

INT8_SCALE_SUFFIX = ".int8_scale"


def dequantize(path: str) -> dict[str, torch.Tensor]:
    """Tensors of a safetensors file; int8 matrices `[R, C]` times their scales `[R, 1]` become fp32."""
    stored = load_file(path)
    scales = {name: stored.pop(name) for name in list(stored) if name.endswith(INT8_SCALE_SUFFIX)}
    for name, scale in scales.items():
        matrix = name.removesuffix(INT8_SCALE_SUFFIX)
        stored[matrix] = stored[matrix].float() * scale
    return stored


def quantize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Every matrix `[R, C]` as int8 plus `NAME.int8_scale` `[R, 1]` fp32; other tensors as they are."""
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim != 2:
            stored[name] = tensor
            continue
        scale = tensor.float().abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
        stored[name] = (tensor.float() / scale).round().clamp(-127, 127).to(torch.int8)
        stored[name + INT8_SCALE_SUFFIX] = scale
    return stored
