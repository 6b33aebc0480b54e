"""Tensors of the states of many dialogues, one row each, and a view of some rows for one forward pass.

Rows are read and written in place, so no other dialogue is copied when one joins or leaves. Recurrent states and
windows have a constant size; keys and values of full attention are growing tensors, with one entry per token.

Dims: C rows of the table, n rows of a view, T new tokens, S remembered and new tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from itertools import groupby

import torch

from chatbot.model.attention.experimental.efficient import MASKED_KEY

BLANKS = {"level": MASKED_KEY}
"""Values of tensors before the first token, where they are not zero."""

BLOCK_TOKENS = 64
"""Minimum number of tokens that growing tensors have room for."""


def length_class(tokens: int) -> int:
    """Return the class of a number of tokens: 0 below `BLOCK_TOKENS`, and one more for each doubling."""
    return (tokens // BLOCK_TOKENS).bit_length()


class SlotTable:
    """States of C dialogues, one per row.

    Growing tensors have room for S tokens in every row. They are not initialised, so that a row takes up physical
    memory only as its dialogue grows. Entries are set to zero before attention can reach them, because a NaN spreads
    even from masked entries.

    Args:
        growing: For each layer the names of its tensors with one entry per token, `[C, S, ...]`; the others have a
            constant size, `[C, ...]`.
        rows: C.
        capacity: Initial value of S.

    Attributes:
        layers: Tensors of each layer by name; created by the first forward pass.
        lengths: Number of tokens that each dialogue has read.
    """

    def __init__(self, growing: Sequence[Sequence[str]], rows: int = 1, capacity: int = 0):
        self.growing, self.capacity = growing, capacity
        self.layers: list[dict[str, torch.Tensor]] = [{} for _ in growing]
        self.lengths = [0] * rows
        self._filled = [0] * rows  # number of entries of each row that are set, to a token or to zero

    def copy_rows(self, rows: Sequence[int], count: int | None = None) -> SlotTable:
        """Return a table with copies of these rows.

        By default it has no room for more rows or tokens. With `count` it has `count` rows, with room for as many
        tokens as in this table.
        """
        most = max((self.lengths[row] for row in rows), default=0)
        table = SlotTable(self.growing, count or len(rows), most if count is None else self.capacity)
        for target, source in enumerate(rows):
            table.put(target, self, source)
        return table

    def put(self, row: int, other: SlotTable, source: int = 0) -> None:
        """Copy a row of another table into an empty row."""
        length = other.lengths[source]
        self.reserve(length)
        self.lengths[row] = self._filled[row] = length
        for index, layer in enumerate(other.layers):
            for name, tensor in layer.items():
                mine = self.tensor(index, name, tensor)
                if name in self.growing[index]:
                    mine[row, :length] = tensor[source, :length]
                else:
                    mine[row] = tensor[source]

    def clear(self, row: int) -> None:
        """Empty a row."""
        self.lengths[row] = self._filled[row] = 0
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.items():
                if name not in self.growing[index]:
                    tensor[row] = BLANKS.get(name, 0)

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        most = max(self._filled[a], self._filled[b])
        for values in (self.lengths, self._filled):
            values[a], values[b] = values[b], values[a]
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.items():
                part = slice(0, most) if name in self.growing[index] else slice(None)
                first, second = (tensor[row, part] if tensor[row].ndim else tensor[row] for row in (a, b))
                saved = first.clone()
                first.copy_(second)
                second.copy_(saved)

    def nbytes(self) -> int:
        """Return the size of all tensors in bytes."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())

    def reserve(self, tokens: int) -> None:
        """Make room for this many tokens in growing tensors: the next power of two."""
        if tokens <= self.capacity:
            return
        self.capacity = max(BLOCK_TOKENS, 1 << (tokens - 1).bit_length())
        self._filled = list(self.lengths)
        for index, names in enumerate(self.growing):
            for name in names:
                if (old := self.layers[index].pop(name, None)) is not None:
                    new = self.tensor(index, name, old)
                    for row, length in enumerate(self.lengths):
                        new[row, :length] = old[row, :length]

    def fill(self, rows: Iterable[int], tokens: int) -> None:
        """Set the entries of some rows up to `tokens` to zero, except entries that are already set."""
        end = min(self.capacity, max(BLOCK_TOKENS, 1 << (tokens - 1).bit_length()))
        for row in rows:
            start = self._filled[row]
            if start < tokens:
                self._filled[row] = end
                for index, names in enumerate(self.growing):
                    for name in names:
                        if (tensor := self.layers[index].get(name)) is not None:
                            tensor[row, start:end] = 0

    def tensor(self, layer: int, name: str, example: torch.Tensor) -> torch.Tensor:
        """Return a tensor of the table; one that does not exist yet is created like `example` `[n, ...]`."""
        tensor = self.layers[layer].get(name)
        if tensor is not None:
            return tensor
        count = len(self.lengths)
        if name not in self.growing[layer]:
            tensor = example.new_full((count, *example.shape[1:]), BLANKS.get(name, 0))
        else:
            tensor = example.new_empty(count, self.capacity, *example.shape[2:])
            for row, filled in enumerate(self._filled):
                tensor[row, :filled] = 0
        self.layers[layer][name] = tensor
        return tensor


class SlotView:
    """Some rows of a table and the new tokens that they read in one forward pass, padded on the left.

    Args:
        table: The table.
        rows: The n distinct rows of the table.
        counts: Number of new tokens of each row.
        device: Device of the model.

    Attributes:
        keep: bool `[n, T]`, False at padding, or None without padding.
        positions: int64 `[n, T]`, positions of the new tokens in their dialogues.
        total: S, the largest number of tokens in a row, including the new ones.
    """

    def __init__(self, table: SlotTable, rows: Sequence[int], counts: Sequence[int], device: torch.device):
        self.table, self.counts, self.width = table, list(counts), max(counts)
        self._table_rows = list(rows)
        lengths = [table.lengths[row] for row in rows]
        self._past = lengths
        self.past, self.total = max(lengths), max(map(sum, zip(lengths, counts, strict=True)))
        self.index = torch.tensor(rows, device=device)
        first = rows[0]
        is_range = list(rows) == list(range(first, first + len(rows)))
        self.rows: slice | torch.Tensor = slice(first, first + len(rows)) if is_range else self.index
        self._lengths = torch.tensor(lengths, device=device)
        column = torch.arange(self.width, device=device)
        padding = self.width - torch.tensor(counts, device=device)
        is_padded = len(set(counts)) > 1
        self.keep = column >= padding[:, None] if is_padded else None
        self.positions = self._lengths[:, None] + (column - padding[:, None]).clamp_min(0)
        self._is_level = not is_padded and len(set(lengths)) == 1
        self._classes = [length_class(length) for length in lengths]
        table.reserve(self.total)
        for run, tokens in self.runs:
            table.fill(rows[run], tokens)

    @cached_property
    def visible(self) -> torch.Tensor | None:
        """Mask of the entries that each new token sees, bool `[n, T, S]`; None if it sees all entries up to itself.

        None is possible only if no row has padding or missing entries, and the past is empty or T is 1.
        """
        if self._is_level and (self.width == 1 or not self.past):
            return None
        return torch.arange(self.total, device=self.index.device) <= self.positions[:, :, None]

    @cached_property
    def runs(self) -> list[tuple[slice, int]]:
        """Runs of consecutive rows of similar length, each with the number of tokens in its longest row.

        Attention is computed for one run at a time, so that short rows are not padded to the length of long ones. If
        rows read several new tokens, all rows are one run.
        """
        if self.width > 1:
            return [(slice(0, len(self.counts)), self.total)]
        runs, start = [], 0
        for _, members in groupby(self._classes):
            end = start + len(list(members))
            runs.append((slice(start, end), max(self._past[start:end]) + 1))
            start = end
        return runs

    def tensors(self, layer: int) -> dict[str, torch.Tensor]:
        """Return the tensors of a layer before the new tokens; growing ones padded on the right, with their `keep`."""
        if not self.past:
            return {}
        growing = self.table.growing[layer]
        if growing:
            self.table.fill(self._table_rows, self.past)
        result = {}
        for name, tensor in self.table.layers[layer].items():
            result[name] = tensor[self.rows, : self.past] if name in growing else tensor[self.rows]
        if growing:
            result["keep"] = torch.arange(self.past, device=self.index.device) < self._lengths[:, None]
        return result

    def remember(self, layer: int, tensors: dict[str, torch.Tensor]) -> None:
        """Store the tensors of a layer after the new tokens; only the last T entries of growing tensors are new."""
        growing = self.table.growing[layer]
        for name, tensor in tensors.items():
            if name in growing:
                self.extend(layer, name, tensor[:, -self.width :])
            elif not growing or name != "keep":
                self.table.tensor(layer, name, tensor)[self.rows] = tensor

    def extend(self, layer: int, name: str, new: torch.Tensor) -> torch.Tensor:
        """Add the entries `[n, T, ...]` of the new tokens to a growing tensor and return all entries `[n, S, ...]`."""
        tensor = self.table.tensor(layer, name, new)
        if self._is_level:
            tensor[self.rows, self.past : self.total] = new
        elif self.keep is None:
            tensor[self.index[:, None], self.positions] = new
        else:
            rows = self.index[:, None].expand_as(self.positions)
            tensor[rows[self.keep], self.positions[self.keep]] = new[self.keep]
        return tensor[self.rows, : self.total]

    def advance(self) -> None:
        """Count the new tokens, after all layers have stored them."""
        for row, count in zip(self._table_rows, self.counts, strict=True):
            self.table.lengths[row] += count
