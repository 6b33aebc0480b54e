"""What the model remembers between steps, as a transformers Cache that `generate()` accepts."""

from __future__ import annotations

import torch
from transformers.cache_utils import Cache, CacheLayerMixin

from chatbot.text.dialogue import DialogueError


class MixerState(CacheLayerMixin):
    """What one mixer remembers of the tokens it has seen.

    Attributes:
        tensors: The mixer's own tensors by name, batch first; empty before the first token. Linear attention keeps
            `recurrent` `[B, H, K, V]` in fp32, softmax attention `keys` and `values` `[B, S, H, K]`.
        tokens: Number of tokens seen, padding included.
    """

    def __init__(self):
        super().__init__()
        self.tensors: dict[str, torch.Tensor] = {}
        self.tokens = 0

    def remember(self, new_tokens: int = 0, **tensors: torch.Tensor) -> None:
        """Replaces these tensors, after `new_tokens` more tokens."""
        self.tensors = {**self.tensors, **tensors}
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
    """What all mixers remember, and where each row is in its dialogue.

    With linear layers and sliding windows its size does not depend on the number of tokens seen.

    Args:
        num_layers: Blocks of the model.
    """

    def __init__(self, num_layers: int):
        self.num_layers = num_layers
        super().__init__(layers=[MixerState() for _ in range(num_layers + 1)])

    def positions(self, keep: torch.Tensor) -> torch.Tensor:
        """Positions int64 `[B, T]` of the next tokens, counted without padding; counts them as seen."""
        counter = self.layers[-1]
        counted = keep.cumsum(1)
        if "seen" in counter.tensors:
            counted = counted + counter.tensors["seen"][:, None]
        counter.remember(keep.shape[1], seen=counted[:, -1])
        return (counted - 1).clamp_min(0)

    def clone(self) -> DialogueState:
        """A copy that goes its own way from here: what undo, retry and edit need."""
        other = DialogueState(self.num_layers)
        other.layers = [layer.clone() for layer in self.layers]
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these batch rows, in this order; `rows` int64 `[B']`."""
        self.batch_select_indices(rows)

    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(t.numel() * t.element_size() for layer in self.layers for t in layer.tensors.values())


def check_positions(positions: torch.Tensor, most: int) -> None:
    """Raises DialogueError where a position is beyond the learned ones."""
    if int(positions.max()) >= most:
        raise DialogueError(
            f"This model has {most} positions and the dialogue {int(positions.max()) + 1} tokens; give a shorter one."
        )
