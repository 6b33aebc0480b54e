"""Gather and distribute weights and optimizer states of a model that FSDP2 shards over the processes.

Every process has to call these functions, because they exchange the shards.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.tensor import DTensor

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def is_sharded(model: torch.nn.Module) -> bool:
    """Return whether the parameters are sharded over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return all weights on the CPU of the first process; an empty dict in the others."""
    weights = get_model_state_dict(model, options=WHOLE)
    return {name: tensor for name, tensor in weights.items() if isinstance(tensor, torch.Tensor)}


def whole_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """Return an optimizer's state by parameter name, on the CPU of the first process; an empty dict in the others."""
    return get_optimizer_state_dict(model, optimizer, options=WHOLE)


def load_whole_optimizers(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict]
) -> None:
    """Load states from `whole_optimizer`, which every process has read, into sharded optimizers."""
    for optimizer, state in zip(optimizers, states, strict=True):
        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
