"""The states of dialogues that come and go, each in a place of its own."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import c_int64, c_void_p

import torch

from chatbot.decoding.native_batch import NativeNetwork, NativeSteps
from chatbot.model.state import check_positions
from chatbot.native.library import library

FIRST_PLACES = 8


class Slots(NativeSteps):
    """A batch whose rows are places: a dialogue enters and leaves without a copy of the others, any can be read together.

    Args:
        network: Whose states they are.
    """

    def __init__(self, network: NativeNetwork):
        super().__init__(network, FIRST_PLACES)
        self._free = list(range(FIRST_PLACES))

    def enter(self, steps: NativeSteps | None) -> int:
        """The place of a new dialogue, which goes on from a copy of the only row of `steps`, or is empty."""
        if not self._free:
            self._grow()
        steps = self.network.start() if steps is None else steps
        place = self._free.pop()
        for mine, given in zip(self.layers, steps.layers, strict=True):
            for name, tensor in given.items():
                mine[name][place] = tensor[0]
        self.positions[place] = steps.positions[0]
        return place

    def leave(self, place: int) -> None:
        """Frees a place."""
        self._free.append(place)

    def copy_of(self, place: int) -> NativeSteps:
        """The dialogue at a place, as a batch of one row."""
        return self.take(torch.tensor([place]))

    def _grow(self) -> None:
        count = len(self.positions)
        both = self.join([self, self.network.start(count)])
        self.layers, self.positions, self._states = both.layers, both.positions, both._states
        self._free += range(count, 2 * count)

    def read_at(self, places: Sequence[int], ids: Sequence[Sequence[int]], speakers: Sequence[int]) -> torch.Tensor:
        """Reads at least one token at each of these places, which differ.

        Args:
            places: Of B dialogues.
            ids: The tokens that each reads.
            speakers: Who says them, one a place.

        Returns:
            Logits fp32 `[B, V]` of what follows.
        """
        network, config = self.network.network, self.network.config
        counts = torch.tensor([len(row) for row in ids])
        tokens = torch.tensor([token for row in ids for token in row])
        who = torch.tensor(speakers)
        for values, size in ((tokens, config.vocab_size), (who, config.num_speakers)):
            if not counts.all() or not 0 <= values.min() <= values.max() < size:
                raise IndexError(f"Ids are from 0 to {size - 1}, at least one a row.")  # C would read foreign memory
        ends, rows = counts.cumsum(0), torch.tensor(places).repeat_interleave(counts)
        offsets = torch.arange(len(rows)) - (ends - counts).repeat_interleave(counts)
        positions = self.positions[rows] + offsets
        if config.positions == "learned":
            check_positions(positions, config.max_position_embeddings)
        wanted = torch.full((len(rows),), -1)
        wanted[ends - 1] = torch.arange(len(ids))
        logits = torch.empty(len(ids), network.head_matrix.rows)
        lanes = (rows, tokens, who.repeat_interleave(counts), positions, wanted, logits)
        if library().xianliao_read(
            ctypes.byref(network), self._states, c_int64(len(rows)), *(c_void_p(t.data_ptr()) for t in lanes)
        ):
            raise MemoryError("There is no memory left to read on.")
        self.positions[places] += counts
        return logits
