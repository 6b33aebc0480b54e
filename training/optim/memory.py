"""Memory: the largest micro-batch that fits, and an allocator that keeps freed buffers."""

from __future__ import annotations

import ctypes
import math
import sys
from itertools import cycle, islice

import torch
from accelerate import Accelerator
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from training.data.packing import PackedData
from training.optim.regularizers import Objective

CPU_TOKENS = 4096
"""Tokens per pass that keep two CPU cores busy."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Raise glibc's mmap and trim thresholds, so that large buffers are reused.

    By default glibc returns them to the system at every step; paging them in again costs CPU training a third of its
    speed.

    Returns:
        Whether the thresholds were raised; False everywhere but on Linux with glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def find_micro_batch_rows(
    model: torch.nn.Module, objective: Objective, data: PackedData, batch_rows: int, accelerator: Accelerator
) -> int:
    """Return the number of rows that one forward and backward pass has memory for.

    The search starts at the rows that a process has in a step and halves them after every out-of-memory error. On CPUs,
    where running out of memory raises no error and larger passes are not faster, it starts at `CPU_TOKENS`.

    Args:
        model: Model as prepared for training.
        objective: Loss and gradients of the model.
        data: Rows to try with.
        batch_rows: Rows of an optimizer step, over all processes.
        accelerator: Accelerator of the run.

    Raises:
        RuntimeError: A single row does not fit.
    """
    rows = math.ceil(batch_rows / accelerator.num_processes)
    if accelerator.device.type == "cpu":
        rows = min(rows, max(1, CPU_TOKENS // data.row_tokens))
    sample = list(islice(cycle(data.rows(0)), rows))
    while True:
        try:
            model.train()
            batch = {name: tensor.to(accelerator.device) for name, tensor in data.tensors(sample[:rows]).items()}
            with accelerator.no_sync(model):
                objective.backward(batch, data.targets(sample[:rows]), accelerator.backward)
            break
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or rows == 1:
                raise
            rows //= 2
            clear_device_cache()
        finally:
            for parameter in model.parameters():
                parameter.grad = None
    if accelerator.num_processes > 1:
        rows_by_process = accelerator.gather(torch.tensor([rows], device=accelerator.device))
        rows = int(rows_by_process.min())
    return rows
