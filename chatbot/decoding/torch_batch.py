"""Batches and slots of dialogues for any model, which reads tokens in its forward pass, on any device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from chatbot.decoding.slots import INITIAL_SLOTS, SlotRows
from chatbot.model.protocol import DialogueModel
from chatbot.model.slots.table import SlotTable, SlotView, length_class


class TorchSlots:
    """`chatbot.decoding.slots.Slots` of a model.

    All rows that have exactly one new token share one forward pass. They occupy the first rows of the cache (the
    table), so the pass can update the cache in place. Rows with more new tokens are padded and grouped: rows share a
    pass if the numbers of their new tokens, and of their earlier tokens, lie between the same powers of two.

    Args:
        model: The model.
        table: Initial states, one for each slot from 0 on; default: none.
    """

    def __init__(self, model: DialogueModel, table: SlotTable | None = None):
        self.model = model
        self.table = model.new_table(0) if table is None else table
        self._slots: list[int | None] = list(range(len(self.table.lengths)))  # slot of each row of the table
        self._row_of = {slot: slot for slot in range(len(self._slots))}

    def accepts(self, dialogue: Any) -> bool:
        return isinstance(dialogue, TorchBatch) and dialogue.pool.model is self.model

    @torch.inference_mode()
    def enter(self, dialogue: TorchBatch | None) -> int:
        if None not in self._slots:
            self._resize(max(INITIAL_SLOTS, 2 * len(self._slots)))
        row = self._slots.index(None)
        slot = next(number for number in range(len(self._slots)) if number not in self._row_of)
        if dialogue is not None:
            self.table.put(row, dialogue.pool.table, dialogue.pool.row_of(dialogue.slots[0]))
        self._slots[row], self._row_of[slot] = slot, row
        return slot

    @torch.inference_mode()
    def leave(self, slot: int) -> None:
        """Free a slot; the table shrinks to half if three of four slots are free."""
        row = self._row_of.pop(slot)
        self._slots[row] = None
        self.table.clear(row)
        if not self._row_of:
            self.table, self._slots = self.model.new_table(0), []
        elif len(self._slots) > INITIAL_SLOTS and 4 * len(self._row_of) <= len(self._slots):
            self._resize(len(self._slots) // 2)

    def row_of(self, slot: int) -> int:
        """Return the row of the table that holds a slot."""
        return self._row_of[slot]

    def copy_of(self, slot: int) -> TorchBatch:
        return self.copy([slot])

    @torch.inference_mode()
    def copy(self, slots: Sequence[int]) -> TorchBatch:
        """Return a copy of some slots as a batch with a separate pool."""
        table = self.table.copy_rows([self._row_of[slot] for slot in slots])
        return TorchBatch(self.model, len(slots), TorchSlots(self.model, table))

    def nbytes(self) -> int:
        return self.table.nbytes()

    def hidden_of(self, slot: int) -> torch.Tensor:
        return self.table.layers[-1]["hidden"][self._row_of[slot]].clone()

    @torch.inference_mode()
    def set_latent(self, slot: int, z: torch.Tensor) -> None:
        last = len(self.table.layers) - 1
        self.table.tensor(last, "latent", z[None])[self._row_of[slot]] = z

    @torch.inference_mode()
    def read_rows(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        groups: dict[tuple[int, int], list[int]] = {}  # indices of the rows by classes of new and earlier tokens
        for index, tokens in enumerate(ids):
            if not tokens or len(tokens) != len(speakers[index]):
                raise ValueError("Every row must read at least one token, and have one speaker id for each token.")
            width = (len(tokens) - 1).bit_length()
            length = length_class(self.table.lengths[self._row_of[rows[index]]]) if width else 0
            groups.setdefault((width, length), []).append(index)
        if len(set(rows)) < len(rows) or len(rows) != len(ids):
            raise ValueError("`rows` must not repeat a row, and must be as long as `ids`.")
        if (singles := groups.get((0, 0))) is not None:
            self._move_to_front([rows[index] for index in singles])
        logits: list[torch.Tensor | None] = [None] * len(rows)
        for indices in groups.values():
            indices.sort(key=lambda index: self._row_of[rows[index]])
            part = self._forward(
                [self._row_of[rows[index]] for index in indices],
                [ids[index] for index in indices],
                [speakers[index] for index in indices],
            )
            if len(groups) == 1:
                return part if indices == list(range(len(rows))) else part[_inverse(indices).to(part.device)]
            for index, row in zip(indices, part, strict=True):
                logits[index] = row
        return torch.stack([row for row in logits if row is not None])

    def _forward(
        self, rows: Sequence[int], ids: Sequence[Sequence[int]], speakers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Read the next tokens of some rows of the table and return the logits fp32 `[n, V]` after them."""
        view = SlotView(self.table, rows, [len(tokens) for tokens in ids], self.model.device)
        padded = torch.tensor(
            [[0] * (view.width - len(row)) + list(row) for values in (ids, speakers) for row in values],
            dtype=torch.int64,
            device=self.model.device,
        )
        output = self.model(
            padded[: len(rows)],
            attention_mask=view.keep,
            token_type_ids=padded[len(rows) :],
            past_key_values=self.model.state_of(view),
            logits_to_keep=1,
        )
        view.advance()
        assert output.logits is not None  # only the type of transformers' output allows None
        return output.logits[:, -1].float()

    def _move_to_front(self, slots: Sequence[int]) -> None:
        """Move slots to the first rows of the table, by length class; a dialogue already in a row of its class stays."""
        class_of = {slot: length_class(self.table.lengths[self._row_of[slot]]) for slot in slots}
        wanted = sorted(class_of.values())  # classes of the first rows

        def is_placed(row: int) -> bool:
            slot = self._slots[row]
            return slot in class_of and class_of[slot] == wanted[row]

        misplaced: dict[int, list[int]] = {}
        for slot in slots:
            row = self._row_of[slot]
            if row >= len(slots) or not is_placed(row):
                misplaced.setdefault(class_of[slot], []).append(slot)
        for row in range(len(slots)):
            if not is_placed(row):
                self._swap(row, self._row_of[misplaced[wanted[row]].pop()])

    def _swap(self, a: int, b: int) -> None:
        """Exchange two rows of the table."""
        self.table.swap(a, b)
        self._slots[a], self._slots[b] = self._slots[b], self._slots[a]
        for row in (a, b):
            if (slot := self._slots[row]) is not None:
                self._row_of[slot] = row

    def _resize(self, count: int) -> None:
        """Move all dialogues into a table of `count` rows."""
        rows = [row for row, slot in enumerate(self._slots) if slot is not None]
        self.table = self.table.copy_rows(rows, count)
        self._slots = [self._slots[row] for row in rows] + [None] * (count - len(rows))
        self._row_of = {slot: row for row, slot in enumerate(self._slots) if slot is not None}


class TorchBatch(SlotRows):
    """`chatbot.decoding.batch.DialogueBatch` of a model, in a separate pool.

    Args:
        model: The model.
        rows: Number of dialogues.
        pool: The pool, whose first `rows` slots are the rows; default: a new one of empty dialogues.
    """

    pool: TorchSlots

    def __init__(self, model: DialogueModel, rows: int = 1, pool: TorchSlots | None = None):
        pool = TorchSlots(model, model.new_table(rows)) if pool is None else pool
        super().__init__(pool, range(rows))

    def clone(self) -> TorchBatch:
        return self.pool.copy(self.slots)


def _inverse(order: Sequence[int]) -> torch.Tensor:
    """Return the permutation that undoes `order`."""
    return torch.tensor(order).argsort()
