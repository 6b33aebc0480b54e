"""Pools of dialogue states: each dialogue has a slot, so that dialogues can start and end without copying the others.

`NativeSlots` holds states of the compiled library, `chatbot.decoding.torch_batch.TorchSlots` those of any model.
`SlotRows` makes a `chatbot.decoding.batch.DialogueBatch` of some slots of a pool.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch

from chatbot.decoding.native_batch import NativeBatch, NativeNetwork

INITIAL_SLOTS = 8


class Slots(Protocol):
    """A pool of dialogue states."""

    def enter(self, dialogue: Any) -> int:
        """Return the slot of a new dialogue: a copy of the only row of `dialogue`, or an empty dialogue for None."""

    def accepts(self, dialogue: Any) -> bool:
        """Whether `enter` can copy this batch."""

    def leave(self, slot: int) -> None:
        """Free a slot."""

    def copy_of(self, slot: int) -> Any:
        """Return a copy of the dialogue in a slot, as a batch of one row."""

    def read_rows(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Read the next tokens of some dialogues, at least one per dialogue.

        Args:
            rows: The N distinct slots of these dialogues.
            ids: Token ids for each of these slots.
            speakers: Speaker ids of these tokens.

        Returns:
            Logits fp32 `[N, V]` of the token that follows each of these dialogues.
        """

    def hidden_of(self, slot: int) -> torch.Tensor:
        """Return the hidden state `[D]` after the last norm at a dialogue's last token, if the model has a latent."""

    def set_latent(self, slot: int, z: torch.Tensor) -> None:
        """Set the latent variable z, fp32 `[Z]`, with which a dialogue reads its next tokens, if the model has one."""

    def nbytes(self) -> int:
        """Return the size of the pool in bytes."""


class NativeSlots(NativeBatch):
    """`Slots` in the compiled library: a batch whose rows are the slots.

    Args:
        network: Network of the states.
    """

    def __init__(self, network: NativeNetwork):
        super().__init__(network, INITIAL_SLOTS)
        self._free = list(range(INITIAL_SLOTS))

    def accepts(self, dialogue: Any) -> bool:
        return isinstance(dialogue, NativeBatch) and dialogue.network is self.network

    def enter(self, dialogue: NativeBatch | None) -> int:
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
        self._free.append(slot)

    def copy_of(self, slot: int) -> NativeBatch:
        return self.copy_rows(torch.tensor([slot]))

    def hidden_of(self, slot: int) -> torch.Tensor:
        return self.hidden[slot].clone()

    def _grow(self) -> None:
        """Double the number of slots, one tensor after the other: both sizes of all of them would be much memory.

        What the new slots contain until a dialogue enters is undefined.
        """
        count = len(self.positions)
        for layer in [*self.layers, {"positions": self.positions}]:
            for tensor in layer.values():
                tensor.resize_(2 * count, *tensor.shape[1:])
        self._point_at_layers()
        self._free += range(count, 2 * count)


@dataclass
class Part:
    """Tokens of a prompt that are read in the same pass as the rows of a batch.

    Attributes:
        slot: Slot of the dialogue.
        ids, speakers: The tokens and their speaker ids.
        logits: Logits `[1, V]` of the next token, once the part was read.
    """

    slot: int
    ids: Sequence[int]
    speakers: Sequence[int]
    logits: torch.Tensor | None = None


class SlotRows:
    """`chatbot.decoding.batch.DialogueBatch` whose rows are slots of a pool; other slots do not change.

    Attributes:
        slots: Slot of each row.
        parts: Parts of prompts that the next call reads as well, in the same pass over the weights.
    """

    def __init__(self, pool: Slots, slots: Sequence[int] = ()):
        self.pool, self.slots = pool, list(slots)
        self.parts: list[Part] = []

    def read(self, ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]) -> torch.Tensor:
        return self.pool.read_rows(self.slots, ids, speakers)

    def __call__(self, ids: torch.Tensor, speakers: torch.Tensor) -> torch.Tensor:
        count, parts, self.parts = len(self.slots), self.parts, []
        tokens = [*([token] for token in ids.tolist()), *(part.ids for part in parts)]
        roles = [*([speaker] for speaker in speakers.tolist()), *(part.speakers for part in parts)]
        logits = self.pool.read_rows([*self.slots, *(part.slot for part in parts)], tokens, roles)
        for row, part in enumerate(parts, count):
            part.logits = logits[row : row + 1].clone()
        return logits[:count]

    def select(self, rows: torch.Tensor) -> None:
        """Keep these rows, in this order. A repeated row is copied; the slots of the other rows are freed."""
        chosen: list[int] = []
        for row in rows.tolist():
            slot = self.slots[row]
            chosen.append(self.pool.enter(self.pool.copy_of(slot)) if slot in chosen else slot)
        for slot in set(self.slots) - set(chosen):
            self.pool.leave(slot)
        self.slots = chosen

    @property
    def hidden(self) -> torch.Tensor:
        """Hidden states `[B, D]` at the last tokens of the rows, if the model has a latent variable."""
        return torch.stack([self.pool.hidden_of(slot) for slot in self.slots])

    def set_latent(self, row: int, z: torch.Tensor) -> None:
        """Set the latent variable z, fp32 `[Z]`, with which a row reads its next tokens, if the model has one."""
        self.pool.set_latent(self.slots[row], z)

    def clone(self) -> SlotRows:
        return SlotRows(self.pool, [self.pool.enter(self.pool.copy_of(slot)) for slot in self.slots])

    def nbytes(self) -> int:
        return self.pool.nbytes()
