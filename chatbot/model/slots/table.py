"""Tensors of the states of many dialogues, one row each, and a view of some rows for one forward pass.

Rows are read and written in place, so a dialogue that joins or leaves copies no other. Recurrent states and windows have
a constant size; keys and values of full attention have one entry per token and grow in blocks.

Dims: C rows of the table, n rows of a view, T new tokens, S remembered and new tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from itertools import groupby

import torch

from chatbot.model.attention.experimental.efficient import MASKED_KEY

BLANKS = {"level": MASKED_KEY}
"""Values of tensors before the first token, where they are not zero."""

BLOCK_TOKENS = 64
"""Least number of tokens that growing tensors have room for."""


def length_class(tokens: int) -> int:
    """Return the class of a number of tokens: 0 below `BLOCK_TOKENS`, and one more for each doubling."""
    return (tokens // BLOCK_TOKENS).bit_length()


class SlotTable:
    """States of C dialogues.

    Args:
        growing: For each layer the names of its tensors with one entry per token, `[C, S, ...]`; the others have a
            constant size, `[C, ...]`.
        rows: C.

    Attributes:
        layers: Tensors of each layer by name; created by the first forward pass.
        lengths: Number of tokens that each dialogue has read. Entries of growing tensors beyond it are finite.
    """

    def __init__(self, growing: Sequence[Sequence[str]], rows: int = 1):
        self.growing = growing
        self.layers: list[dict[str, torch.Tensor]] = [{} for _ in growing]
        self.lengths = [0] * rows

    def copy_rows(self, rows: Sequence[int], count: int | None = None) -> SlotTable:
        """Return a copy of these rows, followed by empty rows up to `count`."""
        table = SlotTable(self.growing, len(rows) if count is None else count)
        for target, source in enumerate(rows):
            table.put(target, self, source)
        return table

    def put(self, row: int, other: SlotTable, source: int = 0) -> None:
        """Copy a row of another table into an empty row."""
        length = self.lengths[row] = other.lengths[source]
        for index, layer in enumerate(other.layers):
            for name, tensor in layer.items():
                mine = self._tensor(index, name, tensor, length)
                if name in self.growing[index]:
                    mine[row, :length] = tensor[source, :length]
                else:
                    mine[row] = tensor[source]

    def clear(self, row: int) -> None:
        """Empty a row. Stale numbers would be masked, but a NaN among them would spread all the same."""
        length, self.lengths[row] = self.lengths[row], 0
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.items():
                if name in self.growing[index]:
                    tensor[row, :length] = 0
                else:
                    tensor[row] = BLANKS.get(name, 0)

    def swap(self, a: int, b: int) -> None:
        """Exchange two rows."""
        most = max(self.lengths[a], self.lengths[b])
        self.lengths[a], self.lengths[b] = self.lengths[b], self.lengths[a]
        for index, layer in enumerate(self.layers):
            for name, tensor in layer.items():
                part = slice(0, most) if name in self.growing[index] else slice(None)
                first, second = (tensor[row, part] if tensor[row].ndim else tensor[row] for row in (a, b))
                saved = first.clone()
                first.copy_(second)
                second.copy_(saved)

    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for layer in self.layers for tensor in layer.values())

    def write(self, layer: int, name: str, rows: slice | torch.Tensor, values: torch.Tensor) -> None:
        """Replace the rows `[n, ...]` of a tensor of constant size."""
        self._tensor(layer, name, values)[rows] = values

    def grown(self, layer: int, name: str, example: torch.Tensor, tokens: int) -> torch.Tensor:
        """Return a growing tensor with room for `tokens` tokens; `example` `[n, T, ...]` has the shape of its entries."""
        return self._tensor(layer, name, example, tokens)

    def _tensor(self, layer: int, name: str, example: torch.Tensor, tokens: int = 0) -> torch.Tensor:
        """Return a tensor of the table; one that does not exist yet is created like `example` `[n, ...]`."""
        tensors, grows = self.layers[layer], name in self.growing[layer]
        tensor = tensors.get(name)
        if tensor is not None and (not grows or tensor.shape[1] >= tokens):
            return tensor
        shape = list(example.shape)
        shape[0] = len(self.lengths)
        if grows:
            shape[1] = max(BLOCK_TOKENS, 1 << (tokens - 1).bit_length())
        tensors[name] = example.new_full(shape, BLANKS.get(name, 0))
        if tensor is not None:
            used = min(max(self.lengths), tensor.shape[1])
            tensors[name][:, :used] = tensor[:, :used]
        return tensors[name]


class SlotView:
    """Some rows of a table and the new tokens that they read in one forward pass, padded on the left.

    Args:
        table: The table.
        rows: Different rows of it, n of them.
        counts: Number of new tokens of each row.
        device: Device of the model.

    Attributes:
        keep: bool `[n, T]`, False at padding, or None without padding.
        positions: int64 `[n, T]`, positions of the new tokens in their dialogues.
        total: S, the largest number of tokens of a row, with the new ones.
    """

    def __init__(self, table: SlotTable, rows: Sequence[int], counts: Sequence[int], device: torch.device):
        self.table, self.counts, self.width = table, list(counts), max(counts)
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

    @cached_property
    def visible(self) -> torch.Tensor | None:
        """Which of the S entries of its row each new token sees, bool `[n, T, S]`; None for all up to it.

        None is possible only if no row has padding or missing entries, and there is no past or one new token.
        """
        if self._is_level and (self.width == 1 or not self.past):
            return None
        return torch.arange(self.total, device=self.index.device) <= self.positions[:, :, None]

    @cached_property
    def runs(self) -> list[tuple[slice, int]]:
        """Runs of rows of similar length, with the tokens of the longest; attention over a run skips what is longer.

        Only rows that read one token are divided.
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
        result = {}
        for name, tensor in self.table.layers[layer].items():
            result[name] = tensor[self.rows, : self.past] if name in growing else tensor[self.rows]
        if growing:
            result["keep"] = torch.arange(self.past, device=self.index.device) < self._lengths[:, None]
        return result

    def remember(self, layer: int, tensors: dict[str, torch.Tensor]) -> None:
        """Store the tensors of a layer after the new tokens; of growing ones the last T entries are new."""
        growing = self.table.growing[layer]
        for name, tensor in tensors.items():
            if name in growing:
                self.extend(layer, name, tensor[:, -self.width :])
            elif not growing or name != "keep":
                self.table.write(layer, name, self.rows, tensor)

    def extend(self, layer: int, name: str, new: torch.Tensor) -> torch.Tensor:
        """Add the entries `[n, T, ...]` of the new tokens to a growing tensor and return all entries `[n, S, ...]`."""
        tensor = self.table.grown(layer, name, new, self.total)
        if self._is_level:
            tensor[self.rows, self.past : self.total] = new
        elif self.keep is None:
            tensor[self.index[:, None], self.positions] = new
        else:
            rows = self.index[:, None].expand_as(self.positions)
            tensor[rows[self.keep], self.positions[self.keep]] = new[self.keep]
        return tensor[self.rows, : self.total]

    def advance(self, rows: Sequence[int]) -> None:
        """Count the new tokens, after all layers have stored them; `rows` are those of the view."""
        for row, count in zip(rows, self.counts, strict=True):
            self.table.lengths[row] += count
