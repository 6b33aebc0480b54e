"""What a model remembered after each turn of the conversations it has seen, so that a new turn costs only its own tokens."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

import torch

from chatbot.decoding.batch import Steps

Pieces = Sequence[tuple[tuple[int, ...], int]]


class Snapshots:
    """States by the pieces of the prompt that led to them, least recently used ones forgotten first.

    A forgotten one is rebuilt from the text, bit for bit: every piece is read by itself either way.

    Args:
        most_bytes: Of states and logits.
    """

    def __init__(self, most_bytes: int):
        self.most_bytes, self.bytes = most_bytes, 0
        self._kept: OrderedDict[tuple, tuple[Steps, torch.Tensor, int]] = OrderedDict()

    def __len__(self) -> int:
        return len(self._kept)

    def find(self, pieces: Pieces) -> tuple[int, Steps | None, torch.Tensor | None]:
        """`longest`, with a copy of the state."""
        count, steps, logits = self.longest(pieces)
        return count, None if steps is None else steps.clone(), logits

    def longest(self, pieces: Pieces) -> tuple[int, Steps | None, torch.Tensor | None]:
        """How many of the pieces, from the first, are remembered together, and the state and logits after them, to read."""
        for count in range(len(pieces), 0, -1):
            found = self._kept.get(pieces[:count])
            if found is not None:
                self._kept.move_to_end(pieces[:count])
                return count, found[0], found[1]
        return 0, None, None

    def keep(self, pieces: Pieces, steps: Steps, logits: torch.Tensor) -> None:
        """Remembers what is there after the pieces; the caller must not go on with these steps."""
        self._drop(pieces)
        size = steps.nbytes() + logits.nbytes
        self._kept[pieces] = (steps, logits, size)
        self.bytes += size
        while self.bytes > self.most_bytes and len(self._kept) > 1:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0

    def _drop(self, pieces: Pieces) -> None:
        found = self._kept.pop(pieces, None)
        if found is not None:
            self.bytes -= found[2]
