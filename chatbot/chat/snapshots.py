"""Cache of model states after each turn of recent conversations, so that a new turn costs only its own tokens."""

from __future__ import annotations

from collections import OrderedDict

import torch

from chatbot.decoding.batch import DialogueBatch

Pieces = tuple[tuple[tuple[int, ...], int], ...]
"""Parts of a prompt with their speakers; see `chatbot.text.dialogue.Prompt`."""


class Snapshots:
    """LRU cache of model states; the key of a state is the prompt pieces that the model has read.

    An evicted state can be rebuilt from the text with the same bits, because the model reads every piece in a separate
    pass in both cases.

    Args:
        max_bytes: Maximum size of all states and logits in bytes.
    """

    def __init__(self, max_bytes: int):
        self.max_bytes, self.bytes = max_bytes, 0
        self._entries: OrderedDict[Pieces, tuple[DialogueBatch, torch.Tensor, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, pieces: Pieces) -> tuple[int, DialogueBatch | None, torch.Tensor | None]:
        """Return the same as `longest`, but with a copy of the state, which the caller may change."""
        count, batch, logits = self.longest(pieces)
        return count, None if batch is None else batch.clone(), logits

    def longest(self, pieces: Pieces) -> tuple[int, DialogueBatch | None, torch.Tensor | None]:
        """Find the longest cached prefix of a prompt.

        Returns:
            Number of pieces in the prefix, and the state and logits `[1, V]` after it, which must not be changed.
        """
        for count in range(len(pieces), 0, -1):
            entry = self._entries.get(pieces[:count])
            if entry is not None:
                self._entries.move_to_end(pieces[:count])
                return count, entry[0], entry[1]
        return 0, None, None

    def add(self, pieces: Pieces, batch: DialogueBatch, logits: torch.Tensor) -> None:
        """Cache the state and logits after the pieces; the caller must not change them afterwards."""
        self._remove(pieces)
        size = batch.nbytes() + logits.nbytes
        self._entries[pieces] = (batch, logits, size)
        self.bytes += size
        while self.bytes > self.max_bytes and len(self._entries) > 1:
            self._remove(next(iter(self._entries)))

    def clear(self) -> None:
        """Remove all states."""
        self._entries.clear()
        self.bytes = 0

    def _remove(self, pieces: Pieces) -> None:
        entry = self._entries.pop(pieces, None)
        if entry is not None:
            self.bytes -= entry[2]
