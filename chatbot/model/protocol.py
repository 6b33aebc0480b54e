"""Interface of a model that can be decoded, trained and scored: our network and the chat models run by transformers.

Decoding, chat and scoring accept any object with this interface, so a test can use a small stand-in.
Dims: B batch, T tokens, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

import torch

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch import nn
    from transformers.modeling_outputs import CausalLMOutputWithPast

    from chatbot.model.latent.layers import ReplyLatent
    from chatbot.model.slots.table import SlotTable, SlotView


class ModelConfig(Protocol):
    """Settings of a model that other packages read."""

    @property
    def vocab_size(self) -> int:
        """Number of token ids V."""

    @property
    def layout(self) -> str:
        """Name of the sample layout, a key of `chatbot.text.layouts.LAYOUTS`."""

    @property
    def context_tokens(self) -> int:
        """Maximum length of the history in tokens; older turns are dropped."""

    @property
    def direction(self) -> str:
        """`forward`, or `backward` for a model trained on reversed dialogues, which ranks replies."""

    @property
    def pad_token_id(self) -> int | None: ...

    @property
    def bos_token_id(self) -> int | None: ...

    @property
    def eos_token_id(self) -> int | None:
        """Id of the end of turn."""


class CompiledNetwork(Protocol):
    """Weights laid out for the compiled C library: `chatbot.decoding.native_batch.NativeNetwork`."""

    @property
    def int8(self) -> bool:
        """Whether matrices are multiplied in int8."""

    def start(
        self, rows: int = 1
    ) -> Any:  # a chatbot.decoding.native_batch.NativeBatch, a type of a higher import level
        """Return a batch of empty dialogues."""


class DialogueModel(Protocol):
    """A model that can be decoded. `LanguageModel` documents the arguments of a call.

    Attributes:
        native: The weights for the compiled library, or None to decode through the model itself.
        training: Whether the model is in training mode.
    """

    native: CompiledNetwork | None
    training: bool

    @property
    def config(self) -> ModelConfig: ...

    @property
    def latent(self) -> ReplyLatent | None:
        """The latent variable of the model's replies, or None."""

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens of a dialogue, or None for no limit."""

    @property
    def device(self) -> torch.device: ...

    @property
    def dtype(self) -> torch.dtype: ...

    def parameters(self) -> Iterator[nn.Parameter]:
        """Yield the weights."""

    def new_state(self) -> Any:
        """Return an empty state for `past_key_values`, which a call updates in place."""

    def new_table(self, rows: int = 1) -> SlotTable:
        """Return a table of empty states, one per row."""

    def state_of(self, view: SlotView) -> Any:
        """Return a state, for `past_key_values`, that reads and writes the rows of a view of a `new_table`."""

    def __call__(
        self,
        input_ids: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        past_key_values: Any = None,  # the state that new_state of the same model returned
        logits_to_keep: int = 0,
    ) -> CausalLMOutputWithPast:
        """Return the logits `[B, T, V]` of the next token at every position."""

    def train(self, mode: bool = True) -> Any:
        """Switch between training and evaluation mode."""

    def eval(self) -> Any:
        """Switch to evaluation mode."""
