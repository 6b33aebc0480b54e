"""Packing dialogues into rows, without cutting a turn and without leakage between dialogues.

Everything here is a pure function of (lengths, settings, seed, epoch): any process can compute any batch, which is what
makes resuming exact and the loss of a step independent of the number of processes.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch

from chatbot.dialogue import IGNORED_LABEL, Layout
from chatbot.dialogue_files import load_split

OPEN_ROWS = 512
"""Rows that wait for a dialogue that fits; more pack tighter, fewer keep the order more random."""


@dataclass(frozen=True)
class Piece:
    """Turns `first` to `last` (exclusive) of a dialogue, laid out in at most `tokens` tokens."""

    dialogue: int
    first: int
    last: int
    tokens: int


class TurnStore:
    """Token ids of the turns of a split, flat in memory.

    Attributes:
        ids: int32, all turns after each other.
        turn_starts: int64 `[turns + 1]` into `ids`.
        dialogue_starts: int64 `[dialogues + 1]` into the turns.
        units: int64 `[dialogues]`.
    """

    def __init__(self, folders: Sequence[str], split: str):
        ids, turn_lengths, dialogue_lengths, units = [], [], [], []
        for folder in folders:
            data = load_split(folder, split)
            table = data.data.table.combine_chunks()
            for column in table.column("turns").chunks:
                turns = column.flatten()
                dialogue_lengths.append(np.diff(column.offsets.to_numpy()))
                turn_lengths.append(np.diff(turns.offsets.to_numpy()))
                ids.append(turns.flatten().to_numpy())
            units.append(np.asarray(table.column("units"), dtype=np.int64))
        self.ids = np.concatenate([*ids, np.zeros(0, np.int32)])
        self.turn_starts = _starts(turn_lengths)
        self.dialogue_starts = _starts(dialogue_lengths)
        self.units = np.concatenate([*units, np.zeros(0, np.int64)])

    def __len__(self) -> int:
        return len(self.dialogue_starts) - 1

    def turns(self, dialogue: int, first: int = 0, last: int | None = None) -> list[list[int]]:
        """Ids of the turns `first` to `last` (exclusive) of a dialogue."""
        start = self.dialogue_starts[dialogue]
        stop = self.dialogue_starts[dialogue + 1] if last is None else start + last
        bounds = self.turn_starts[start + first : stop + 1]
        return [self.ids[a:b].tolist() for a, b in pairwise(bounds)]

    def turn_lengths(self, dialogue: int) -> list[int]:
        start, stop = self.dialogue_starts[dialogue], self.dialogue_starts[dialogue + 1]
        return np.diff(self.turn_starts[start : stop + 1]).tolist()


def _starts(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]))])


def cut_into_pieces(store: TurnStore, row_tokens: int, layout: Layout) -> tuple[list[Piece], int]:
    """Pieces of whole turns that fit a row, and the number of turns left out because one alone is longer than a row.

    A dialogue that fits is one piece; a longer one is cut between turns, and speaker ids follow the absolute index.
    """
    pieces, left_out = [], 0
    opening, around = layout.opening_tokens, layout.turn_tokens
    for dialogue in range(len(store)):
        first, tokens = 0, opening
        lengths = store.turn_lengths(dialogue)
        for index, length in enumerate(lengths):
            if opening + length + around > row_tokens:
                left_out += 1
                if index > first:
                    pieces.append(Piece(dialogue, first, index, tokens))
                first, tokens = index + 1, opening
                continue
            if tokens + length + around > row_tokens:
                pieces.append(Piece(dialogue, first, index, tokens))
                first, tokens = index, opening
            tokens += length + around
        if first < len(lengths):
            pieces.append(Piece(dialogue, first, len(lengths), tokens))
    return pieces, left_out


def pack(pieces: Sequence[Piece], row_tokens: int, seed: int, epoch: int) -> list[list[int]]:
    """Rows of piece indices, each of at most `row_tokens` tokens, in random order: best fit among `OPEN_ROWS` rows."""
    random = np.random.default_rng((seed, epoch))
    rows: list[list[int]] = []
    open_rows: list[tuple[int, int]] = []  # (room, row), sorted
    for index in random.permutation(len(pieces)).tolist():
        tokens = pieces[index].tokens
        place = bisect_left(open_rows, (tokens, -1))
        if place < len(open_rows):
            room, row = open_rows.pop(place)
        else:
            if len(open_rows) == OPEN_ROWS:
                open_rows.pop(0)  # the fullest
            room, row = row_tokens, len(rows)
            rows.append([])
        rows[row].append(index)
        if room > tokens:
            insort(open_rows, (room - tokens, row))
    return [rows[i] for i in random.permutation(len(rows)).tolist()]


class PackedData:
    """The batches of a run.

    Attributes:
        pieces: What the rows are made of.
        left_out_turns: Turns that are longer than a row.
    """

    def __init__(self, store: TurnStore, layout: Layout, row_tokens: int, batch_rows: int, seed: int, pad_id: int):
        self.store, self.layout, self.row_tokens, self.batch_rows = store, layout, row_tokens, batch_rows
        self.seed, self.pad_id = seed, pad_id
        self.pieces, self.left_out_turns = cut_into_pieces(store, row_tokens, layout)
        self._epoch: tuple[int, list[list[int]]] | None = None

    def rows(self, epoch: int) -> list[list[int]]:
        """All rows of an epoch."""
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, pack(self.pieces, self.row_tokens, self.seed, epoch))
        return self._epoch[1]

    def batches(self, epoch: int) -> list[list[list[int]]]:
        """The optimizer batches of an epoch; the last one may be smaller, nothing is dropped."""
        rows = self.rows(epoch)
        return [rows[start : start + self.batch_rows] for start in range(0, len(rows), self.batch_rows)]

    def utilisation(self, epoch: int = 0) -> float:
        """Share of the tokens of the rows that are not padding."""
        rows = self.rows(epoch)
        return sum(piece.tokens for piece in self.pieces) / (len(rows) * self.row_tokens)

    def targets(self, rows: Sequence[Sequence[int]]) -> int:
        """Number of loss-carrying tokens of rows: those of the turns and an end for each."""
        opening, unscored = self.layout.opening_tokens, self.layout.turn_tokens - 1
        pieces = [self.pieces[index] for row in rows for index in row]
        return sum(piece.tokens - opening - (piece.last - piece.first) * unscored for piece in pieces)

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
                piece = self.pieces[index]
                sample = self.layout.lay_out(self.store.turns(piece.dialogue, piece.first, piece.last), piece.first)
                start, end = end, end + len(sample.input_ids)
                batch["input_ids"][number, start:end] = torch.tensor(sample.input_ids)
                batch["token_type_ids"][number, start:end] = torch.tensor(sample.speaker_ids)
                batch["labels"][number, start:end] = torch.tensor(sample.labels)
                batch["segment_ids"][number, start:] = segment
                batch["attention_mask"][number, start:end] = 1
        return batch
