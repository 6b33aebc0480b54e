"""Int8 weights: rounding, and the form in which a checkpoint stores them."""

from __future__ import annotations

import torch

INT8_SCALE_SUFFIX = ".int8_scale"


def round_rows(matrix: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a matrix to int8 with one scale per row, max |w| / 127, so that matrix is about rounded * scale.

    Args:
        matrix: `[R, C]`, any float dtype.

    Returns:
        The rounded matrix, int8 `[R, C]` in -127..127, and the scales, fp32 `[R, 1]`.
    """
    wide = matrix.float()
    scale = wide.abs().amax(1, keepdim=True).clamp_min(1e-12) / 127
    return (wide / scale).round().clamp(-127, 127).to(torch.int8), scale


def quantize(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors with every matrix `[R, C]` as int8 and its scales as `NAME.int8_scale`, fp32 `[R, 1]`.

    Tensors that are not matrices are returned unchanged.
    """
    stored: dict[str, torch.Tensor] = {}
    for name, tensor in tensors.items():
        if tensor.ndim == 2:
            stored[name], stored[name + INT8_SCALE_SUFFIX] = round_rows(tensor)
        else:
            stored[name] = tensor
    return stored


def dequantize(stored: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors of a file with int8 matrices `[R, C]` multiplied by their scales `[R, 1]` to fp32."""
    scales = {name: tensor for name, tensor in stored.items() if name.endswith(INT8_SCALE_SUFFIX)}
    tensors = {name: tensor for name, tensor in stored.items() if name not in scales}
    for name, scale in scales.items():
        matrix = name.removesuffix(INT8_SCALE_SUFFIX)
        tensors[matrix] = tensors[matrix].float() * scale
    return tensors
