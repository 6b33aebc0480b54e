"""Interface of a model that can be decoded: our network and the chat models that transformers runs.

Dims: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import Any, Protocol, Self

import torch


class ModelConfig(Protocol):
    """Settings of a model that other rooms read."""

    @property
    def vocab_size(self) -> int: ...

    @property
    def layout(self) -> str: ...

    @property
    def context_tokens(self) -> int: ...


class ModelState(Protocol):
    """State of a batch of dialogues after the tokens that the model has read."""

    def clone(self) -> Self: ...

    def select(self, rows: torch.Tensor) -> None: ...

    def nbytes(self) -> int: ...


class DialogueModel(Protocol):
    """A model that can be decoded."""

    training: bool

    @property
    def config(self) -> Any: ...  # a ModelConfig

    @property
    def most_tokens(self) -> int | None: ...

    @property
    def device(self) -> torch.device: ...

    def new_state(self) -> Any: ...  # a ModelState

    def __call__(self, *args: Any, **kwargs: Any) -> Any: ...
