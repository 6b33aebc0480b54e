"""State that the model carries between steps, as a transformers Cache that `generate()` accepts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from chatbot.text.dialogue import DialogueError


class MixerState(CacheLayerMixin):
    """State of one mixer after the tokens that it has seen.

    Attributes:
        tensors: The mixer's tensors by name, batch first; empty before the first token. Linear attention stores
            `recurrent` `[B, H, K, V]` in fp32, softmax attention `keys` and `values` `[B, S, H, K]`.
        tokens: Number of tokens seen, padding included.
    """

    def __init__(self) -> None:
        super().__init__()
        self.tensors: dict[str, torch.Tensor] = {}
        self.tokens = 0

    def remember(self, new_tokens: int = 0, **tensors: torch.Tensor) -> None:
        """Replace the named tensors and count `new_tokens` more tokens."""
        self.tensors = {**self.tensors, **tensors}
        self.tokens += new_tokens
        self.is_initialized = True

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention: Callable[..., torch.Tensor]
    ) -> torch.Tensor | None:
        """Add keys and values in place and attend to all, if the state keeps them in slots.

        Args:
            q, k, v: `[B, T, H, K]` of the new tokens.
            attention: `chatbot.model.attention.softmax.parallel`.

        Returns:
            `[B, T, H, V]`; None if the mixer must join the tensors itself.
        """
        return None

    def clone(self) -> MixerState:
        """Return an independent copy; cheap, because tensors are replaced and never written in place."""
        other = MixerState()
        other.tensors, other.tokens, other.is_initialized = dict(self.tensors), self.tokens, self.is_initialized
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Keep these batch rows, in this order; `rows` int64 `[B']`, repeats allowed."""
        self.tensors = {name: t.index_select(0, rows.to(t.device)) for name, t in self.tensors.items()}

    # The interface that transformers' generate() expects of a cache layer.
    def lazy_initialization(self, *args) -> None:
        raise NotImplementedError("A mixer fills its state itself: call MixerState.remember.")

    def update(self, *args, **kwargs):
        raise NotImplementedError("A mixer fills its state itself: call MixerState.remember.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.tokens + query_length, 0

    def get_seq_length(self) -> int:
        return self.tokens

    def get_max_length(self) -> int:
        return -1

    def reset(self) -> None:
        self.tensors, self.tokens, self.is_initialized = {}, 0, False

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        self.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        self.tensors = {name: t.repeat_interleave(repeats, dim=0) for name, t in self.tensors.items()}

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        self.select(indices)


class DialogueState(Cache):
    """State of all mixers, and the position of each row in its dialogue.

    With linear layers and sliding windows, the size of the state does not depend on the number of tokens seen.

    Args:
        num_layers: Number of blocks of the model. One more layer counts the tokens and serves the end head.
    """

    layers: list[MixerState]  # type: ignore[assignment]  # only our own layers

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        super().__init__(layers=[MixerState() for _ in range(num_layers + 1)])

    def count(self, keep: torch.Tensor) -> torch.Tensor:
        """Count new tokens and return their positions.

        Args:
            keep: int64 `[B, T]`, 0 at padding.

        Returns:
            Positions int64 `[B, T]` of the tokens in their dialogues, not counting padding.
        """
        counter = self.layers[-1]
        counted = keep.cumsum(1)
        if "seen" in counter.tensors:
            counted = counted + counter.tensors["seen"][:, None]
        counter.remember(keep.shape[1], seen=counted[:, -1])
        return (counted - 1).clamp_min(0)

    def clone(self) -> DialogueState:
        """Return an independent copy, which undo, retry and edit need."""
        other = DialogueState(self.num_layers)
        other.layers = [layer.clone() for layer in self.layers]
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Keep these batch rows, in this order; `rows` int64 `[B']`, repeats allowed."""
        self.batch_select_indices(rows)

    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors.values())


def check_positions(positions: torch.Tensor, max_positions: int) -> None:
    """Check that all positions are below `max_positions`.

    Raises:
        DialogueError: A position is `max_positions` or more.
    """
    last = int(positions.max())
    if last >= max_positions:
        raise DialogueError(
            f"The dialogue has {last + 1} tokens, but this model has only {max_positions} positions. Shorten the"
            " dialogue."
        )
