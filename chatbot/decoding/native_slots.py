"""Pool of dialogue states: each dialogue has a slot, so that dialogues can start and end without copying the others."""

from __future__ import annotations

import torch

from chatbot.decoding.native_batch import NativeBatch, NativeNetwork

INITIAL_SLOTS = 8


class Slots(NativeBatch):
    """A batch whose rows are slots; `read_rows` reads the next tokens of any of them together.

    Args:
        network: Network of the states.
    """

    def __init__(self, network: NativeNetwork):
        super().__init__(network, INITIAL_SLOTS)
        self._free = list(range(INITIAL_SLOTS))

    def enter(self, dialogue: NativeBatch | None) -> int:
        """Return the slot of a new dialogue: a copy of the only row of `dialogue`, or an empty dialogue for None."""
        if not self._free:
            self._grow()
        dialogue = self.network.start() if dialogue is None else dialogue
        slot = self._free.pop()
        for layer, copied in zip(self.layers, dialogue.layers, strict=True):
            for name, tensor in copied.items():
                layer[name][slot] = tensor[0]
        self.positions[slot] = dialogue.positions[0]
        return slot

    def leave(self, slot: int) -> None:
        """Free a slot."""
        self._free.append(slot)

    def copy_of(self, slot: int) -> NativeBatch:
        """Return a copy of the dialogue in a slot, as a batch of one row."""
        return self.copy_rows(torch.tensor([slot]))

    def _grow(self) -> None:
        count = len(self.positions)
        self.replace(self.concatenate([self, self.network.start(count)]))
        self._free += range(count, 2 * count)
