"""Packing of whole dialogues into rows of equal length.

The rows of an epoch are a pure function of (lengths, settings, seed, epoch): any process can compute any batch. So a
run resumes exactly, and the loss of a step does not depend on the number of processes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from chatbot.text.layouts import IGNORED_LABEL, Layout
from training.data.turn_store import TurnStore, cut_into_pieces, learn_replies_only

OPEN_ROWS = 512
"""Number of rows open for further dialogues; more open rows pack tighter, fewer keep the order more random."""


def draw(count: int, weight: float, seed: Sequence[int], epoch: int) -> np.ndarray:
    """Return the indices of `count` items that occur in an epoch of weight * count items.

    The epochs read one random permutation of all items after another, so every item occurs once before any repeats.

    Returns:
        int64 `[n]`, n = floor((epoch + 1) weight count) - floor(epoch weight count).
    """
    share = Fraction(str(weight)) * count  # exact, so that the sizes of epochs differ by at most one
    start, stop = math.floor(epoch * share), math.floor((epoch + 1) * share)
    drawn: list[np.ndarray] = []
    while start < stop:
        pass_number, offset = divmod(start, count)
        order = np.random.default_rng((*seed, pass_number)).permutation(count)
        drawn.append(order[offset : offset + stop - start])
        start += len(drawn[-1])
    return np.concatenate([*drawn, np.zeros(0, np.int64)])


def pack(tokens: np.ndarray, row_tokens: int, order: np.ndarray) -> list[list[int]]:
    """Pack pieces into rows of at most `row_tokens` tokens by best fit among `OPEN_ROWS` open rows.

    Args:
        tokens: Number of tokens of each piece.
        row_tokens: Maximum number of tokens of a row.
        order: Indices of the pieces to pack, in this order.

    Returns:
        Piece indices of each row.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for index, size in zip(order.tolist(), tokens[order].tolist(), strict=True):
        best = bisect_left(open_rows, (size, -1))
        if best < len(open_rows):
            room, row = open_rows.pop(best)
        else:
            if len(open_rows) == OPEN_ROWS:
                open_rows.pop(0)  # the fullest
            room, row = row_tokens, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > size:
            insort(open_rows, (room - size, row))
    return rows


class PackedData:
    """The optimizer batches of a stage.

    Args:
        store: Dialogues.
        layout: Layout of the dialogues.
        row_tokens: Tokens of a row.
        batch_rows: Rows of an optimizer step.
        seed: Seed of the order.
        pad_id: Id of the padding token.
        weights: Occurrences of each folder of the store per epoch; None means one.
        replies_only: Whether only the turns of speaker 1 carry loss, for each folder; None means in no folder.

    Attributes:
        pieces: Pieces that the rows are packed from.
        left_out_turns: Number of turns left out because they are longer than a row.
    """

    def __init__(
        self,
        store: TurnStore,
        layout: Layout,
        row_tokens: int,
        batch_rows: int,
        seed: int,
        pad_id: int,
        weights: Sequence[float] | None = None,
        replies_only: Sequence[bool] | None = None,
    ):
        self.store, self.layout, self.row_tokens, self.batch_rows = store, layout, row_tokens, batch_rows
        self.seed, self.pad_id = seed, pad_id
        self.weights = [1.0] * len(store.folders) if weights is None else list(weights)
        self.pieces, self.left_out_turns = cut_into_pieces(store, row_tokens, layout)
        if replies_only is not None and any(replies_only):
            self.pieces = learn_replies_only(self.pieces, store, replies_only)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def rows(self, epoch: int) -> list[list[int]]:
        """Return the rows of an epoch, in random order; the rows of the last epoch asked for are cached."""
        if self._epoch is None or self._epoch[0] != epoch:
            random = np.random.default_rng((self.seed, epoch))
            bounds = pairwise(np.searchsorted(self.pieces.dialogue, self.store.folder_starts).tolist())
            drawn = [
                start + draw(stop - start, weight, (self.seed, number), epoch)
                for number, (weight, (start, stop)) in enumerate(zip(self.weights, bounds, strict=True))
                if stop > start
            ]
            order = random.permutation(np.concatenate([*drawn, np.zeros(0, np.int64)]))
            rows = pack(self.pieces.tokens, self.row_tokens, order)
            self._epoch = (epoch, [rows[i] for i in random.permutation(len(rows)).tolist()])
        return self._epoch[1]

    def batches(self, epoch: int) -> list[list[list[int]]]:
        """Return the optimizer batches of an epoch; the last batch may be smaller, no row is dropped."""
        rows = self.rows(epoch)
        return [rows[start : start + self.batch_rows] for start in range(0, len(rows), self.batch_rows)]

    def utilisation(self, epoch: int = 0) -> float:
        """Return the share of tokens that are not padding, in the rows of an epoch."""
        rows = self.rows(epoch)
        return self.tokens(rows) / max(1, len(rows) * self.row_tokens)

    def tokens(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the number of tokens in rows that are not padding."""
        return sum(int(self.pieces.tokens[row].sum()) for row in rows if row)

    def targets(self, rows: Sequence[Sequence[int]]) -> int:
        """Return the number of tokens in rows that carry loss."""
        return sum(int(self.pieces.targets[row].sum()) for row in rows if row)

    def describe(self, rows: Sequence[Sequence[int]]) -> str:
        """Name the dialogues of rows by set and index in its train split, counted from 0."""
        indices: dict[str, set[int]] = {}
        for dialogue in sorted({int(self.pieces.dialogue[index]) for row in rows for index in row}):
            number = int(np.searchsorted(self.store.folder_starts, dialogue, side="right")) - 1
            folder = Path(self.store.folders[number]).name
            indices.setdefault(folder, set()).add(dialogue - int(self.store.folder_starts[number]))
        return "; ".join(f"{folder}: {', '.join(map(str, sorted(some)))}" for folder, some in indices.items())

    def tensors(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Return the model input of rows: each tensor is int64 `[rows, row_tokens]`.

        `segment_ids` number the pieces of a row; the model lets no information pass between them.
        """
        shape = (len(rows), self.row_tokens)
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "token_type_ids": torch.zeros(shape, dtype=torch.int64),
            "labels": torch.full(shape, IGNORED_LABEL),
            "segment_ids": torch.zeros(shape, dtype=torch.int64),
            "attention_mask": torch.zeros(shape, dtype=torch.int64),
        }
        for number, row in enumerate(rows):
            end = 0
            for segment, index in enumerate(row):
                piece = self.pieces
                first, last = int(piece.first[index]), int(piece.last[index])
                sample = self.layout.lay_out(self.store.turns(int(piece.dialogue[index]), first, last), first)
                start, end = end, end + len(sample.input_ids)
                speakers, labels = torch.tensor(sample.speaker_ids), torch.tensor(sample.labels)
                if piece.replies_only[index]:
                    labels[speakers == 0] = IGNORED_LABEL
                batch["input_ids"][number, start:end] = torch.tensor(sample.input_ids)
                batch["token_type_ids"][number, start:end] = speakers
                batch["labels"][number, start:end] = labels
                batch["segment_ids"][number, start:] = segment
                batch["attention_mask"][number, start:end] = 1
        return batch
