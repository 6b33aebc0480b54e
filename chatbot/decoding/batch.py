"""Batches of dialogues that read tokens together: in the compiled library if possible, else in torch.

To read a token means to run the model on it and to add it to the dialogue's state. Dims: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self, cast

import torch

from chatbot.decoding.native_batch import NativeNetwork
from chatbot.decoding.slots import NativeSlots, Slots
from chatbot.decoding.torch_batch import TorchBatch, TorchSlots
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.protocol import DialogueModel


class DialogueBatch(Protocol):
    """Batch of dialogues, one per row, with the model state of each dialogue."""

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Read the next tokens of every row, at least one per row.

        Args:
            ids: Token ids of each row; rows can have different lengths.
            speakers: Speaker ids of these tokens.

        Returns:
            Logits fp32 `[B, V]` of the token that follows each row.

        Raises:
            DialogueError: A row is longer than the model has positions for.
            IndexError: An id is not in the vocabulary, or a speaker is unknown to the model.
        """

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        """Read one token per row, ids and speakers int64 `[B]`; otherwise like `read`."""

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order, repeats allowed; `rows` int64 `[B']`."""

    def clone(self) -> Self:
        """Return an independent copy."""

    @property
    def hidden(self) -> torch.Tensor:
        """Hidden states `[B, D]` after the last norm at the last tokens of the rows; only if the model has a latent."""

    def set_latent(self, row: int, z: torch.Tensor) -> None:
        """Set the latent variable z, fp32 `[Z]`, with which a row reads its next tokens; only if the model has one."""

    def nbytes(self) -> int:
        """Return the size of the states in bytes."""


def native_network(model: DialogueModel) -> NativeNetwork | None:
    """Return the model's weights for the compiled library, or None if `make_native` has not created them."""
    return cast(NativeNetwork | None, model.native)


def start_batch(model: DialogueModel, rows: int = 1) -> DialogueBatch:
    """Return a batch of empty dialogues, in the compiled library if `make_native` has prepared the model."""
    network = native_network(model)
    return TorchBatch(model, rows) if network is None else network.start(rows)


def start_slots(model: DialogueModel) -> Slots:
    """Return a pool of dialogues, in the compiled library if `make_native` has prepared the model."""
    network = native_network(model)
    return TorchSlots(model) if network is None else NativeSlots(network)


def make_native(model: DialogueModel, int8: bool = False) -> bool:
    """Prepare a model for the compiled library, if the library supports it; the weights must not change afterwards.

    Args:
        model: A model; only an XianliaoForCausalLM can be supported.
        int8: Multiply in int8.

    Returns:
        Whether the compiled library supports the model.
    """
    model.native = None
    if isinstance(model, XianliaoForCausalLM) and NativeNetwork.supports(model):
        model.native = NativeNetwork(model, int8)
    return model.native is not None
