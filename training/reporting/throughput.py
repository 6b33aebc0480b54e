"""Throughput: floating-point operations, the measured peak of the machine, memory."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass

import psutil
import torch
from torch import nn

BUSY = 4 / 3
"""Ratio of wall time to processor time above which the machine counts as busy."""


@dataclass(frozen=True)
class Duration:
    """Time of a computation.

    Attributes:
        wall: Seconds on the clock.
        processor: Seconds during which the calling thread had a processor: about the seconds on the clock of a machine
            without other work.
    """

    wall: float = 0.0
    processor: float = 0.0

    def __add__(self, other: Duration) -> Duration:
        return Duration(self.wall + other.wall, self.processor + other.processor)

    def __mul__(self, factor: float) -> Duration:
        return Duration(self.wall * factor, self.processor * factor)

    @property
    def is_slowed_down(self) -> bool:
        """Return whether other work on the machine makes the computation clearly slower."""
        return self.wall > BUSY * self.processor


def timed(compute: Callable[[], object]) -> Duration:
    """Run a computation and return its duration."""
    wall, processor = time.perf_counter(), time.thread_time()
    compute()
    return Duration(time.perf_counter() - wall, time.thread_time() - processor)


def flops_per_token(model: nn.Module) -> int:
    """Return the floating-point operations of a training step per token.

    A weight of a linear layer counts as 6 operations, a frozen weight as 4. Operations of attention itself are not counted,
    so utilisation is understated rather than overstated.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Measure the floating-point operations per second of a large matrix product, the reference of utilisation.

    Args:
        device: Device to measure.
        dtype: dtype of the matrices.
        seconds: Duration of the measurement after a warm-up product. At least one product is measured, however slow.

    Returns:
        Operations per second of the fastest product; always above 0.
    """
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)

    def seconds_of_product() -> float:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        start = time.perf_counter()
        a @ a
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        return time.perf_counter() - start

    seconds_of_product()  # warm-up
    stop = time.perf_counter() + seconds
    fastest = seconds_of_product()
    while time.perf_counter() < stop:
        fastest = min(fastest, seconds_of_product())
    return 2 * size**3 / max(fastest, 1e-9)  # the clock may be too coarse for the product


def utilisation(flops_per_second: float, peak: float) -> float | None:
    """Return the share of the measured peak that a step reached, or None where the peak is unusable as a reference.

    On a busy machine the peak may be measured too low; a step that exceeds it says that the measurement is wrong, so no
    share above 1 is ever returned.
    """
    if not peak > 0 or not flops_per_second <= peak:
        return None
    return flops_per_second / peak


def memory_gigabytes(device: torch.device) -> float:
    """Return the largest memory of a CUDA device so far, or the current memory of the process on other devices."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process(os.getpid()).memory_info().rss / 1e9
