"""Decoding one token a row: the compiled step where there is one, the model itself otherwise."""

from __future__ import annotations

from typing import Protocol

import torch

from chatbot.native_network import NativeNetwork
from chatbot.state import DialogueState


class Steps(Protocol):
    """A batch of replies in the making."""

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        """Reads one token a row, ids and speakers int64 `[B]`; logits `[B, V]` of the next."""

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order; `rows` int64 `[B']`."""


class ModelSteps:
    """Steps through the model's own forward, on any device."""

    def __init__(self, model, state: DialogueState):
        self.model, self.state = model, state

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        return self.model(ids[:, None], token_type_ids=speakers[:, None], past_key_values=self.state).logits[:, -1]

    def select(self, rows: torch.Tensor) -> None:
        self.state.select(rows)


def start_steps(model, state: DialogueState) -> Steps:
    """Decoding from a state, which is used up: through `model.native` when `make_native` has set it."""
    native = getattr(model, "native", None)
    on_cpu = all(tensor.device.type == "cpu" for layer in state.layers for tensor in layer.tensors.values())
    return ModelSteps(model, state) if native is None or not on_cpu else native.start(state)


def make_native(model, int8: bool = False) -> bool:
    """Gives the model the compiled step, if it can have it; its weights must not change afterwards.

    Args:
        model: An XianliaoForCausalLM.
        int8: Multiply in int8 while decoding.

    Returns:
        Whether it has it now.
    """
    model.native = NativeNetwork(model, int8) if NativeNetwork.supports(model) else None
    return model.native is not None
