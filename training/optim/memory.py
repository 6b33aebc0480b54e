"""Memory: how much of a batch fits, and keeping what was freed, which glibc otherwise gives back at every step."""

from __future__ import annotations

import ctypes
import math
import sys

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

CPU_TOKENS = 4096
"""Tokens of a pass that keep two CPU cores busy."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Raises glibc's mmap and trim thresholds, so that large buffers are reused instead of paged in again.

    Fresh pages cost CPU training a third of its speed. Only does something on Linux with glibc; says whether it did.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))


def find_micro_batch_rows(run, objective) -> int:
    """The most rows that a pass forward and back has memory for, halving from all that a process gets in a step.

    Args:
        run: A `training.run.Run` with its stage.
        objective: What computes loss and gradients.
    """
    accelerator, data = run.accelerator, run.stage.data
    rows = math.ceil(run.stage.settings.batch_rows / accelerator.num_processes)
    if accelerator.device.type == "cpu":  # which has no error for too little memory, and gains nothing from more
        rows = min(rows, max(1, CPU_TOKENS // data.row_tokens))
    sample = (data.rows(0) * rows)[:rows]
    while True:
        try:
            run.model.train()
            batch = {name: tensor.to(accelerator.device) for name, tensor in data.tensors(sample[:rows]).items()}
            with accelerator.no_sync(run.model):
                objective.backward(batch, data.targets(sample[:rows]), accelerator.backward)
            break
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or rows == 1:
                raise
            rows //= 2
            clear_device_cache()
        finally:
            for parameter in run.model.parameters():
                parameter.grad = None
    if accelerator.num_processes > 1:
        found = accelerator.gather(torch.tensor([rows], device=accelerator.device))
        rows = int(found.min())
    return rows
