"""The machine of a report: its device, its speed, and a clock that waits for the device."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Machine:
    """Device of the steps.

    Attributes:
        device: cuda or cpu.
        is_tiny: Whether every step runs in its tiny form.
    """

    device: str
    is_tiny: bool

    @property
    def dtype(self) -> torch.dtype:
        """Dtype of training and serving: bf16 on CUDA, fp32 on a CPU."""
        return torch.bfloat16 if self.device == "cuda" else torch.float32

    @property
    def name(self) -> str:
        """Name of the card, or of the CPU form."""
        return torch.cuda.get_device_name() if self.device == "cuda" else "CPU, tiny form"

    def seconds(self, work: Callable[[], object], rounds: int = 5) -> float:
        """Return the median wall seconds of some work after a warm-up, with the device's queue empty at both ends."""
        times = []
        for number in range(rounds + 1):
            started = self.now()
            work()
            if number:
                times.append(self.now() - started)
        return statistics.median(times)

    def now(self) -> float:
        """Return the time after all work of the device has ended."""
        if self.device == "cuda":
            torch.cuda.synchronize()
        return time.perf_counter()

    def matmul_flops(self) -> float:
        """Return the FLOP/s of a large matrix product in `dtype`, the peak that a step is compared with."""
        size = 256 if self.is_tiny else 8192
        a, b = (torch.randn(size, size, device=self.device, dtype=self.dtype) for _ in range(2))
        return 2 * size**3 / self.seconds(lambda: a @ b)
