"""Memory: the largest micro-batch that fits, and an allocator that keeps freed buffers."""

from __future__ import annotations

import ctypes
import math
import sys
from itertools import cycle, islice

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed.tensor import DTensor

from training.data.packing import PackedData
from training.optim.regularizers import Objective
from training.settings import SettingsError

CPU_TOKENS = 4096
"""Tokens per pass that keep two CPU cores busy."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Raise glibc's mmap and trim thresholds, so that large buffers are reused.

    By default glibc returns these buffers to the system at every step; paging them in again costs CPU training a third of
    its speed.

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


def adam_state_like(model: torch.nn.Module) -> list[torch.Tensor]:
    """Return tensors as large as AdamW's two moments; for a sharded parameter, only for the part that this process holds."""
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    local = [parameter.to_local() if isinstance(parameter, DTensor) else parameter for parameter in trained]
    return [torch.empty_like(parameter.detach()) for parameter in local for _ in range(2)]


def find_micro_batch_rows(
    model: torch.nn.Module, objective: Objective, data: PackedData, batch_rows: int, accelerator: Accelerator
) -> int:
    """Return the number of rows that one forward and backward pass has memory for.

    The search starts at the rows that a process has in a step and halves them after every out-of-memory error, while the
    memory of the optimizer's state, which the first step allocates, is reserved. The processes of a sharded model exchange
    its parameters in every pass, so one of them cannot halve its rows while the others wait: there the search ends with an
    error. On CPUs, running out of memory raises no error and larger passes are not faster, so the search starts at
    `CPU_TOKENS`.

    Args:
        model: Model as prepared for training.
        objective: Loss and gradients of the model.
        data: Rows to try with.
        batch_rows: Rows of an optimizer step, over all processes.
        accelerator: Accelerator of the run.

    Raises:
        RuntimeError: A single row does not fit.
        SettingsError: The model is sharded and the rows do not fit.
    """
    rows = math.ceil(batch_rows / accelerator.num_processes)
    if accelerator.device.type == "cpu":
        rows = min(rows, max(1, CPU_TOKENS // data.row_tokens))
    sample = list(islice(cycle(data.rows(0)), rows))
    reserved: list[torch.Tensor] = []
    while True:
        try:
            if accelerator.device.type != "cpu" and not reserved:
                reserved = adam_state_like(model)
            model.train()
            batch = {name: tensor.to(accelerator.device) for name, tensor in data.tensors(sample[:rows]).items()}
            with accelerator.no_sync(model):
                objective.backward(batch, data.targets(sample[:rows]), accelerator.backward)
            break
        except RuntimeError as error:
            if not should_reduce_batch_size(error) or rows == 1:
                raise
            if accelerator.distributed_type == DistributedType.FSDP and accelerator.num_processes > 1:
                raise SettingsError(
                    f"{rows} rows do not fit in the memory of a process, and the processes of a sharded model cannot"
                    f" search for a number that fits. Give --micro-batch-rows {rows // 2} or less."
                ) from None
            rows //= 2
            clear_device_cache()
        finally:
            for parameter in model.parameters():
                parameter.grad = None
    if accelerator.num_processes > 1:
        rows_by_process = accelerator.gather(torch.tensor([rows], device=accelerator.device))
        rows = int(rows_by_process.min())
    return rows
