"""Weights and optimizer states of a model that FSDP2 has spread over the processes, whole again for saving.

Every process has to take part: the pieces travel between them.
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
    """Whether the parameters are spread over processes."""
    return any(isinstance(parameter, DTensor) for parameter in model.parameters())


def whole_weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """All weights on the CPU of the first process; empty in the others."""
    return get_model_state_dict(model, options=WHOLE)


def whole_optimizer(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> dict:
    """The state of an optimizer by parameter name, on the CPU of the first process; empty in the others."""
    return get_optimizer_state_dict(model, optimizer, options=WHOLE)


def spread_optimizers(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer], states: Sequence[dict]
) -> None:
    """Puts what `whole_optimizer` gave back into the optimizers of all processes, each of which has read it."""
    for optimizer, state in zip(optimizers, states, strict=True):
        set_optimizer_state_dict(model, optimizer, state, options=StateDictOptions(full_state_dict=True))
