"""Packing dialogues into rows, without cutting a turn and without leakage between dialogues.

Everything here is a pure function of (lengths, settings, seed, epoch): any process can compute any batch, which is what
makes resuming exact and the loss of a step independent of the number of processes.
"""

from __future__ import annotations

import math
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path

import numpy as np
import torch

from chatbot.text.layouts import IGNORED_LABEL, Layout
from chatbot.text.prepared_set import load_split
from training.settings import parts_of

OPEN_ROWS = 512
"""Rows that wait for a dialogue that fits; more pack tighter, fewer keep the order more random."""


@dataclass(frozen=True)
class Source:
    """A prepared set in a mixture.

    Attributes:
        folder: Of the set.
        weight: How often a dialogue of it comes in an epoch: 2 is twice, 0.25 every fourth epoch.
        replies_only: Only the turns of speaker 1, the bot, carry loss.
    """

    folder: str
    weight: float = 1.0
    replies_only: bool = False


def parse_source(text: str) -> Source:
    """`DIR`, `DIR:weight`, `DIR:replies` or `DIR:weight:replies`, as checked by `TrainSettings.faults`."""
    return Source(*parts_of(text))


@dataclass(frozen=True)
class Pieces:
    """What rows are made of, by dialogue; each int64 `[pieces]`.

    Attributes:
        dialogue: Which one a piece is of.
        first: Its first turn.
        last: The turn after its last.
        tokens: Room it takes in a row, laid out.
        targets: Tokens that carry loss: those of the turns and an end for each.
        replies_only: Whether only the turns of speaker 1 are meant by that, bool.
    """

    dialogue: np.ndarray
    first: np.ndarray
    last: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    replies_only: np.ndarray

    def __len__(self) -> int:
        return len(self.dialogue)

    def take(self, chosen: np.ndarray) -> Pieces:
        """Those that an index or a mask chooses."""
        return Pieces(*(column[chosen] for column in vars(self).values()))


class TurnStore:
    """The turns of a split: their token ids stay on disk, mapped into memory, and only where they are is held.

    Attributes:
        folders: The prepared sets.
        turn_starts: int64 `[turns + 1]` into the ids of all turns after each other.
        dialogue_starts: int64 `[dialogues + 1]` into the turns.
        folder_starts: int64 `[folders + 1]` into the dialogues.
        units: int64 `[dialogues]`.

    Args:
        folders: The prepared sets.
        split: train or valid.
        backward: Give the turns of every dialogue in reverse order, for a model that goes from an answer to what was said.
    """

    def __init__(self, folders: Sequence[str], split: str, backward: bool = False):
        self.folders, self.backward = list(folders), backward
        self._ids: list[np.ndarray] = []  # int32, of one record batch of a file each
        turn_lengths, dialogue_lengths, units = [], [], []
        for folder in folders:
            data = load_split(folder, split)
            for column in data.data.column("turns").chunks:
                turns = column.flatten()
                dialogue_lengths.append(np.diff(column.offsets.to_numpy()))
                turn_lengths.append(np.diff(turns.offsets.to_numpy()))
                self._ids.append(turns.flatten().to_numpy())
            units.append(np.asarray(data.data.column("units"), dtype=np.int64))
        self._ids_before = _starts([np.array([len(ids)]) for ids in self._ids])
        self.turn_starts = _starts(turn_lengths)
        self.dialogue_starts = _starts(dialogue_lengths)
        self.folder_starts = _starts([np.array([len(part)]) for part in units])
        self.units = np.concatenate([*units, np.zeros(0, np.int64)])

    def __len__(self) -> int:
        return len(self.dialogue_starts) - 1

    def token_counts(self, vocab_size: int) -> np.ndarray:
        """How often each id stands in the turns, int64 `[V]`."""
        return sum((np.bincount(ids, minlength=vocab_size) for ids in self._ids), np.zeros(vocab_size, np.int64))

    def turns(self, dialogue: int, first: int = 0, last: int | None = None) -> list[list[int]]:
        """Ids of the turns `first` to `last` (exclusive) of a dialogue."""
        start, count = self.dialogue_starts[dialogue], int(np.diff(self.dialogue_starts[dialogue : dialogue + 2])[0])
        last = count if last is None else last
        if self.backward:
            first, last = count - last, count - first
        bounds = self.turn_starts[start + first : start + last + 1]
        if bounds[0] == bounds[-1]:
            return [[]] * (len(bounds) - 1)
        batch = int(np.searchsorted(self._ids_before, bounds[0], side="right")) - 1  # it holds the dialogue whole
        ids = self._ids[batch]
        turns = [ids[a:b].tolist() for a, b in pairwise((bounds - self._ids_before[batch]).tolist())]
        return turns[::-1] if self.backward else turns

    def turn_lengths(self, dialogue: int) -> list[int]:
        start, stop = self.dialogue_starts[dialogue], self.dialogue_starts[dialogue + 1]
        lengths = np.diff(self.turn_starts[start : stop + 1]).tolist()
        return lengths[::-1] if self.backward else lengths


def _starts(lengths: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]))])


def cut_into_pieces(store: TurnStore, row_tokens: int, layout: Layout) -> tuple[Pieces, int]:
    """Pieces of whole turns that fit a row, and the number of turns left out because one alone is longer than a row.

    A dialogue that fits is one piece; a longer one is cut between turns, and speaker ids follow the absolute index.
    """
    turns = np.diff(store.dialogue_starts)
    content = np.diff(store.turn_starts[store.dialogue_starts])
    tokens = layout.opening_tokens + content + turns * layout.turn_tokens
    whole = np.flatnonzero((tokens <= row_tokens) & (turns > 0))
    cut, left_out = [], 0
    for dialogue in np.flatnonzero(tokens > row_tokens).tolist():
        parts, too_long = _cut(store.turn_lengths(dialogue), row_tokens - layout.opening_tokens, layout.turn_tokens)
        cut += [(dialogue, first, last, layout.opening_tokens + room, targets) for first, last, room, targets in parts]
        left_out += too_long
    columns = np.stack([whole, np.zeros_like(whole), turns[whole], tokens[whole], (content + turns)[whole]], 1)
    columns = np.concatenate([columns, np.array(cut, np.int64).reshape(-1, columns.shape[1])])
    columns = columns[np.lexsort((columns[:, 1], columns[:, 0]))]
    return Pieces(*np.ascontiguousarray(columns.T), np.zeros(len(columns), bool)), left_out


def learn_replies_only(pieces: Pieces, store: TurnStore, marked: Sequence[bool]) -> Pieces:
    """The pieces where, in the marked folders of the store, only turns of speaker 1 carry loss; without those that then
    have none."""
    folder = np.searchsorted(store.folder_starts, pieces.dialogue, side="right") - 1
    replies_only = np.array(marked, bool)[folder]
    starts = store.dialogue_starts[:-1]
    place = np.arange(len(store.turn_starts) - 1) - np.repeat(starts, np.diff(store.dialogue_starts))
    before = _starts([(np.diff(store.turn_starts) + 1) * (place % 2)])
    start = starts[pieces.dialogue]
    of_replies = before[start + pieces.last] - before[start + pieces.first]
    targets = np.where(replies_only, of_replies, pieces.targets)
    return replace(pieces, targets=targets, replies_only=replies_only).take(targets > 0)


def _cut(lengths: list[int], room: int, turn_tokens: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """(first, last, tokens, targets) of the pieces of a dialogue, and how many turns alone are longer than the room."""
    bounds, first, used = [], 0, 0
    for index, length in enumerate(lengths):
        if used and used + length + turn_tokens > room:
            bounds.append((first, index))
            first, used = index, 0
        used += length + turn_tokens
        if used > room:  # it stands alone
            first, used = index + 1, 0
    bounds.append((first, len(lengths)))
    parts = []
    for first, last in bounds:
        if last > first:
            content = sum(lengths[first:last])
            parts.append((first, last, content + (last - first) * turn_tokens, content + last - first))
    return parts, sum(length + turn_tokens > room for length in lengths)


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
