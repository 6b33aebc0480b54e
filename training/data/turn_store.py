"""Packing dialogues into rows, without cutting a turn and without leakage between dialogues.

Everything here is a pure function of (lengths, settings, seed, epoch): any process can compute any batch, which is what
makes resuming exact and the loss of a step independent of the number of processes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from chatbot.text.layouts import Layout
from chatbot.text.prepared_set import load_split
from training.settings import parts_of


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
