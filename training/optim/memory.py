"""Memory: whether a model and its passes fit, the largest micro-batch, and an allocator that keeps freed buffers."""

from __future__ import annotations

import ctypes
import math
import sys
from itertools import cycle, islice
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedType
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch.distributed.tensor import DTensor

from chatbot.checkpoint.weights import memory_bytes
from training.data.packing import PackedData
from training.optim.regularizers import Objective
from training.settings import SettingsError, TrainSettings

CPU_TOKENS = 4096
"""Tokens per pass that keep two CPU cores busy."""

MAX_PARAMETERS = 10**11
"""Maximum number of parameters of a new model, on any machine."""

FLOAT_BYTES = 4

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


def check_parameters(model: torch.nn.Module, device: torch.device) -> None:
    """Check, before memory is allocated, that a machine has memory for the parameters of a new model.

    A model is built in the main memory, and trained there on a CPU, where gradients and the moments of the optimizer need
    three times as much again.

    Args:
        model: The model on torch's meta device.
        device: Device of the training.

    Raises:
        SettingsError: The model is too large.
    """
    parameters = sum(parameter.numel() for parameter in model.parameters())
    others = sum(buffer.numel() for buffer in model.buffers())
    need = FLOAT_BYTES * (parameters * (4 if device.type == "cpu" else 1) + others)
    memory = memory_bytes()
    if need > memory:
        raise SettingsError(
            f"--model.… describes a model of {parameters:,} parameters, which needs {need / 1e9:.0f} GB to be trained, but"
            f" this machine has {memory / 1e9:.0f} GB of memory. Make the model smaller."
        )
    if parameters > MAX_PARAMETERS:
        raise SettingsError(
            f"--model.… describes a model of {parameters:,} parameters, more than the limit of {MAX_PARAMETERS:,}, which is"
            " far above the usual sizes. Make the model smaller."
        )


def check_passes(config: Any, settings: TrainSettings, device: torch.device) -> None:
    """Check, before memory is allocated, that a CPU has memory for a forward pass of each stage.

    The estimate is a lower bound: the values of the residual stream and of the feed-forward layers that the backward pass
    needs, and the mask of softmax attention. A GPU reports by itself that its memory is full.

    Args:
        config: Config of the model.
        settings: Settings of the run.
        device: Device of the training.

    Raises:
        SettingsError: The rows are too long or too many.
    """
    if device.type != "cpu":
        return
    width = getattr(config, "hidden_size", 0)
    if not settings.gradient_checkpointing:
        width = 4 * width + 2 * getattr(config, "intermediate_size", 0)
    value_bytes = 2 if settings.precision == "bf16" else FLOAT_BYTES
    token_bytes = width * getattr(config, "num_hidden_layers", 0) * value_bytes
    has_mask = "softmax" in (getattr(config, "layer_types", None) or ())
    for number in range(max(1, len(settings.stages))):
        stage = settings.of_stage(number)
        rows = min(settings.micro_batch_rows or 1, stage.batch_rows)
        need = rows * stage.row_tokens * (token_bytes + has_mask * stage.row_tokens)
        if need > memory_bytes():
            raise SettingsError(
                f"A pass of {rows} rows of {stage.row_tokens} tokens takes at least {need / 1e9:.0f} GB with this model,"
                f" but this machine has {memory_bytes() / 1e9:.0f} GB of memory. Lower --row-tokens or --micro-batch-rows."
            )


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
