"""Reading and continuing dialogues: through the compiled network where there is one, the model itself otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch

from chatbot.decoding.native_batch import NativeNetwork
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.protocol import DialogueModel, ModelState


class Steps(Protocol):
    """A batch of dialogues, one a row, and what the model remembers of each."""

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        """Reads at least one token a row, as many as there are; logits fp32 `[B, V]` of what follows each row.

        Raises:
            DialogueError: A row is longer than the model has positions for.
            IndexError: An id is not in the vocabulary, or a speaker not one of the model's.
        """

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        """Reads one token a row, ids and speakers int64 `[B]`; otherwise `read`."""

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order, repeats allowed; `rows` int64 `[B']`."""

    def clone(self) -> Steps:
        """A copy that goes its own way from here."""

    def nbytes(self) -> int:
        """Bytes of what is remembered."""


class ModelSteps:
    """Steps through the model's own forward, on any device."""

    def __init__(self, model: DialogueModel, state: ModelState):
        self.model, self.state = model, state

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        width = max(map(len, ids))
        shape = (len(ids), width)
        batch = {"input_ids": torch.zeros(shape, dtype=torch.int64)}  # what stands at padding is not read
        batch |= {"token_type_ids": torch.zeros(shape, dtype=torch.int64)}
        batch |= {"attention_mask": torch.zeros(shape, dtype=torch.int64)}
        for row, (tokens, roles) in enumerate(zip(ids, speakers, strict=True)):
            start = width - len(tokens)
            batch["input_ids"][row, start:] = torch.tensor(tokens)
            batch["token_type_ids"][row, start:] = torch.tensor(roles)
            batch["attention_mask"][row, start:] = 1
        if all(len(row) == width for row in ids):
            del batch["attention_mask"]
        batch = {name: tensor.to(self.model.device) for name, tensor in batch.items()}
        return self.model(**batch, past_key_values=self.state, logits_to_keep=1).logits[:, -1].float()

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        output = self.model(ids[:, None], token_type_ids=speakers[:, None], past_key_values=self.state)
        return output.logits[:, -1].float()

    def select(self, rows: torch.Tensor) -> None:
        self.state.select(rows)

    def clone(self) -> ModelSteps:
        return ModelSteps(self.model, self.state.clone())

    def nbytes(self) -> int:
        return self.state.nbytes()


def start_steps(model: DialogueModel, rows: int = 1) -> Steps:
    """Empty dialogues: through `model.native` when `make_native` has set it."""
    return ModelSteps(model, model.new_state()) if model.native is None else model.native.start(rows)


def make_native(model: DialogueModel, int8: bool = False) -> bool:
    """Gives the model the compiled step, if it can have it; its weights must not change afterwards.

    Args:
        model: Only an XianliaoForCausalLM can have it.
        int8: Multiply in int8.

    Returns:
        Whether it has it now.
    """
    model.native = None
    if isinstance(model, XianliaoForCausalLM) and NativeNetwork.supports(model):
        model.native = NativeNetwork(model, int8)
    return model.native is not None
