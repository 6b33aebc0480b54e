"""What the model remembers between steps, as a transformers Cache that `generate()` accepts."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin


class MixerState(CacheLayerMixin):
    """What one mixer remembers of the tokens it has seen.

    Attributes:
        tensors: The mixer's own tensors by name, batch first; empty before the first token. Linear attention keeps
            `recurrent` `[B, H, K, V]` in fp32.
        tokens: Number of tokens seen, padding included.
    """

    def __init__(self):
        super().__init__()
        self.tensors: dict[str, torch.Tensor] = {}
        self.tokens = 0

    def remember(self, new_tokens: int, **tensors: torch.Tensor) -> None:
        """Replaces the tensors after `new_tokens` more tokens."""
        self.tensors = tensors
        self.tokens += new_tokens
        self.is_initialized = True

    def clone(self) -> MixerState:
        """A copy; cheap, because tensors are replaced and never written into."""
        other = MixerState()
        other.tensors, other.tokens, other.is_initialized = dict(self.tensors), self.tokens, self.is_initialized
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these batch rows, in this order; `rows` int64 `[B']`, repeats allowed."""
        self.tensors = {name: t.index_select(0, rows.to(t.device)) for name, t in self.tensors.items()}

    # What transformers' generate() asks of a cache layer.
    def lazy_initialization(self, *args) -> None:
        raise NotImplementedError("A mixer fills its own state; see MixerState.remember.")

    def update(self, *args, **kwargs):
        raise NotImplementedError("A mixer fills its own state; see MixerState.remember.")

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
    """One `MixerState` a layer. Its size does not depend on the number of tokens seen."""

    def __init__(self, num_layers: int):
        super().__init__(layers=[MixerState() for _ in range(num_layers)])

    def clone(self) -> DialogueState:
        """A copy that goes its own way from here: what undo, retry and edit need."""
        other = DialogueState(0)
        other.layers = [layer.clone() for layer in self.layers]
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these batch rows, in this order; `rows` int64 `[B']`."""
        self.batch_select_indices(rows)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors.values())
