"""Batches of dialogues that read tokens together: through the compiled library if possible, else through the model.

Dims: B rows, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, Self

import torch

from chatbot.decoding.native_batch import NativeNetwork
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.protocol import DialogueModel, ModelState


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

    def nbytes(self) -> int:
        """Return the bytes of the states."""


class TorchBatch:
    """`DialogueBatch` through the model's forward, on any device."""

    def __init__(self, model: DialogueModel, state: ModelState):
        self.model, self.state = model, state

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(map(len, ids))
        input_ids, token_type_ids, mask = torch.zeros(3, len(ids), width, dtype=torch.int64)  # padded on the left
        for row, (tokens, roles) in enumerate(zip(ids, speakers, strict=True)):
            start = width - len(tokens)
            input_ids[row, start:] = torch.tensor(tokens)
            token_type_ids[row, start:] = torch.tensor(roles)
            mask[row, start:] = 1
        is_padded = any(len(row) < width for row in ids)
        device = self.model.device
        output = self.model(
            input_ids.to(device),
            attention_mask=mask.to(device) if is_padded else None,
            token_type_ids=token_type_ids.to(device),
            past_key_values=self.state,
            logits_to_keep=1,
        )
        return _next_logits(output.logits)

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        output = self.model(ids[:, None], token_type_ids=speakers[:, None], past_key_values=self.state)
        return _next_logits(output.logits)

    def select(self, rows: torch.Tensor) -> None:
        self.state.select(rows)

    def clone(self) -> TorchBatch:
        return TorchBatch(self.model, self.state.clone())

    def nbytes(self) -> int:
        return self.state.nbytes()


def _next_logits(logits: torch.Tensor | None) -> torch.Tensor:
    """Return the logits fp32 `[B, V]` of the last position of `[B, T, V]`."""
    assert logits is not None  # only the type of transformers' output allows None
    return logits[:, -1].float()


def native_network(model: DialogueModel) -> NativeNetwork | None:
    """Return the model's weights for the compiled library, or None if `make_native` has not created them."""
    network = getattr(model, "native", None)
    return network if isinstance(network, NativeNetwork) else None


def start_batch(model: DialogueModel, rows: int = 1) -> DialogueBatch:
    """Return a batch of empty dialogues, in the compiled library if `make_native` has prepared the model."""
    network = native_network(model)
    return TorchBatch(model, model.new_state()) if network is None else network.start(rows)


def make_native(model: DialogueModel, int8: bool = False) -> bool:
    """Prepare a model for the compiled library, if that supports it; its weights must not change afterwards.

    Args:
        model: A model; only an XianliaoForCausalLM can be supported.
        int8: Multiply in int8.

    Returns:
        Whether the compiled library supports the model.
    """
    is_supported = isinstance(model, XianliaoForCausalLM) and NativeNetwork.supports(model)
    network = NativeNetwork(model, int8) if isinstance(model, XianliaoForCausalLM) and is_supported else None
    model.native = network
    return is_supported
