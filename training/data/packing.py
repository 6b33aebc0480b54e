"""Packing: rows of an epoch, filled with whole dialogues, as a pure function of lengths, settings, seed and epoch."""

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
"""Rows that wait for a dialogue that fits; more pack tighter, fewer keep the order more random."""


def draw(count: int, weight: float, seed: Sequence[int], epoch: int) -> np.ndarray:
    """Which of `count` things come in an epoch, with weight * count places: one random pass over all after the other."""
    share = Fraction(str(weight)) * count  # exact, so that epochs differ by one at most
    start, stop = math.floor(epoch * share), math.floor((epoch + 1) * share)
    drawn = []
    while start < stop:
        turn, place = divmod(start, count)
        order = np.random.default_rng((*seed, turn)).permutation(count)
        drawn.append(order[place : place + stop - start])
        start += len(drawn[-1])
    return np.concatenate([*drawn, np.zeros(0, np.int64)])


def pack(tokens: np.ndarray, row_tokens: int, order: np.ndarray) -> list[list[int]]:
    """Rows of piece indices, each of at most `row_tokens` tokens: best fit among `OPEN_ROWS` rows.

    Args:
        tokens: Of each piece.
        row_tokens: Of a row.
        order: Indices of the pieces to place, one after the other.
    """
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for index, size in zip(order.tolist(), tokens[order].tolist(), strict=True):
        place = bisect_left(open_rows, (size, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
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
    """The batches of a run.

    Args:
        store: The dialogues.
        layout: How they are laid out.
        row_tokens: Tokens of a row.
        batch_rows: Rows of an optimizer step.
        seed: Of the order.
        pad_id: Fills rows up.
        weights: How often each folder of the store comes in an epoch; None is once.
        replies_only: The folders of which only the turns of speaker 1 carry loss; None is no folder.

    Attributes:
        pieces: What the rows are made of.
        left_out_turns: Turns that are longer than a row.
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
        """All rows of an epoch, in random order."""
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
        """The optimizer batches of an epoch; the last one may be smaller, nothing is dropped."""
        rows = self.rows(epoch)
        return [rows[start : start + self.batch_rows] for start in range(0, len(rows), self.batch_rows)]

    def utilisation(self, epoch: int = 0) -> float:
        """Share of the tokens of the rows that are not padding."""
        rows = self.rows(epoch)
        return self.tokens(rows) / max(1, len(rows) * self.row_tokens)

    def tokens(self, rows: Sequence[Sequence[int]]) -> int:
        """Number of tokens of rows that are not padding."""
        return sum(int(self.pieces.tokens[row].sum()) for row in rows if row)

    def targets(self, rows: Sequence[Sequence[int]]) -> int:
        """Number of loss-carrying tokens of rows."""
        return sum(int(self.pieces.targets[row].sum()) for row in rows if row)

    def describe(self, rows: Sequence[Sequence[int]]) -> str:
        """Where the dialogues of rows stand: set and place in its train split, counted from 0."""
        found: dict[str, set[int]] = {}
        for dialogue in sorted({int(self.pieces.dialogue[index]) for row in rows for index in row}):
            number = int(np.searchsorted(self.store.folder_starts, dialogue, side="right")) - 1
            folder = Path(self.store.folders[number]).name
            found.setdefault(folder, set()).add(dialogue - int(self.store.folder_starts[number]))
        return "; ".join(f"{folder}: {', '.join(map(str, sorted(places)))}" for folder, places in found.items())

    def tensors(self, rows: Sequence[Sequence[int]]) -> dict[str, torch.Tensor]:
        """Model input of rows, each tensor int64 `[rows, row_tokens]`."""
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
