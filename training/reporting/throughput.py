"""Throughput: floating-point operations, the peak of the machine, memory."""

from __future__ import annotations

import os
import time

import psutil
import torch
from torch import nn


def flops_per_token(model: nn.Module) -> int:
    """Floating point operations of a training step for each token: 6 a weight that tokens are multiplied with, 4 if frozen.

    What attention itself computes is left out, so that utilisation is understated rather than overstated.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating point operations a second of a large matrix product here and now: what utilisation is measured against."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    best, stop = 0.0, time.perf_counter() + seconds
    a @ a
    while time.perf_counter() < stop:
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def memory_gigabytes(device: torch.device) -> float:
    """Largest memory of the device so far on CUDA, memory of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process(os.getpid()).memory_info().rss / 1e9
