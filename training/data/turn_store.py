"""The turns of prepared sets, mapped into memory, and their division into pieces that fit a packed row.

A piece is a dialogue, or a run of consecutive turns of a dialogue that is longer than a row. No turn is ever cut.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np

from chatbot.text.layouts import Layout
from chatbot.text.prepared_set import load_split
from training.settings import split_source


@dataclass(frozen=True)
class Source:
    """A prepared set in a mixture.

    Attributes:
        folder: Folder of the set.
        weight: Occurrences of each dialogue per epoch: 2 is twice, 0.25 every fourth epoch.
        replies_only: Only the turns of speaker 1, the bot, carry loss.
    """

    folder: str
    weight: float = 1.0
    replies_only: bool = False


def parse_source(text: str) -> Source:
    """Parse `DIR`, `DIR:weight`, `DIR:replies` or `DIR:weight:replies`; `TrainSettings.faults` checks the weight."""
    return Source(*split_source(text))


@dataclass(frozen=True)
class Pieces:
    """Pieces that rows are packed from, ordered by dialogue; every field is int64 `[pieces]` unless noted.

    Attributes:
        dialogue: Index of the dialogue in the store.
        first: Index of the first turn in the dialogue.
        last: Index after the last turn.
        tokens: Number of tokens that the piece takes in a row, including the special tokens of the layout.
        targets: Tokens that carry loss: the tokens of the turns and one end of turn per turn.
        replies_only: bool `[pieces]`: whether only the turns of speaker 1 carry loss.
    """

    dialogue: np.ndarray
    first: np.ndarray
    last: np.ndarray
    tokens: np.ndarray
    targets: np.ndarray
    replies_only: np.ndarray

    def __len__(self) -> int:
        return len(self.dialogue)

    def select(self, index: np.ndarray) -> Pieces:
        """Return the pieces selected by an index array or a boolean mask."""
        return Pieces(*(column[index] for column in vars(self).values()))


class TurnStore:
    """The turns of one split of several sets; token ids are mapped into memory, only their offsets are loaded.

    Attributes:
        folders: Folders of the prepared sets.
        turn_starts: int64 `[turns + 1]`: offsets of the turns in the concatenated ids.
        dialogue_starts: int64 `[dialogues + 1]`: offsets of the dialogues in the turns.
        folder_starts: int64 `[folders + 1]`: offsets of the sets in the dialogues.
        units: int64 `[dialogues]`: number of units (characters and ends of turns, see `count_units`) of each dialogue.

    Args:
        folders: Folders of the prepared sets.
        split: `train` or `valid`.
        backward: Return the turns of every dialogue in reverse order, for a model of log p(message | reply).
    """

    def __init__(self, folders: Sequence[str], split: str, backward: bool = False):
        self.folders, self.backward = list(folders), backward
        self._ids: list[np.ndarray] = []  # int32, one array per record batch
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
        """Return how often each id occurs in the turns, int64 `[V]`."""
        counts = np.zeros(vocab_size, np.int64)
        for ids in self._ids:
            counts += np.bincount(ids, minlength=vocab_size)
        return counts

    def turns(self, dialogue: int, first: int = 0, last: int | None = None) -> list[list[int]]:
        """Return the token ids of the turns `first` to `last` (exclusive) of a dialogue."""
        start, count = self.dialogue_starts[dialogue], int(np.diff(self.dialogue_starts[dialogue : dialogue + 2])[0])
        last = count if last is None else last
        if self.backward:
            first, last = count - last, count - first
        bounds = self.turn_starts[start + first : start + last + 1]
        if bounds[0] == bounds[-1]:
            return [[]] * (len(bounds) - 1)
        batch = int(np.searchsorted(self._ids_before, bounds[0], side="right")) - 1  # a batch holds whole dialogues
        ids = self._ids[batch]
        turns = [ids[a:b].tolist() for a, b in pairwise((bounds - self._ids_before[batch]).tolist())]
        return turns[::-1] if self.backward else turns

    def turn_lengths(self, dialogue: int) -> list[int]:
        """Return the number of tokens of each turn of a dialogue."""
        start, stop = self.dialogue_starts[dialogue], self.dialogue_starts[dialogue + 1]
        lengths = np.diff(self.turn_starts[start : stop + 1]).tolist()
        return lengths[::-1] if self.backward else lengths


def _starts(lengths: list[np.ndarray]) -> np.ndarray:
    """Return the offsets `[n + 1]` of parts with the concatenated lengths `[n]`."""
    return np.concatenate([np.zeros(1, np.int64), np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int64)]))])


def cut_into_pieces(store: TurnStore, row_tokens: int, layout: Layout) -> tuple[Pieces, int]:
    """Return the pieces of a store, and the number of turns that are left out because they are longer than a row.

    A dialogue that fits is one piece. A longer dialogue is cut between turns; the speaker of a turn depends on
    its index in the whole dialogue.
    """
    turns = np.diff(store.dialogue_starts)
    content = np.diff(store.turn_starts[store.dialogue_starts])
    tokens = layout.opening_tokens + content + turns * layout.turn_tokens
    whole = np.flatnonzero((tokens <= row_tokens) & (turns > 0))
    cut: list[tuple[int, int, int, int, int]] = []
    left_out = 0
    for dialogue in np.flatnonzero(tokens > row_tokens).tolist():
        parts, too_long = _cut(store.turn_lengths(dialogue), row_tokens - layout.opening_tokens, layout.turn_tokens)
        cut += [(dialogue, first, last, layout.opening_tokens + room, targets) for first, last, room, targets in parts]
        left_out += too_long
    columns = np.stack([whole, np.zeros_like(whole), turns[whole], tokens[whole], (content + turns)[whole]], 1)
    columns = np.concatenate([columns, np.array(cut, np.int64).reshape(-1, columns.shape[1])])
    columns = columns[np.lexsort((columns[:, 1], columns[:, 0]))]
    dialogue_of, first_of, last_of, tokens_of, targets_of = np.ascontiguousarray(columns.T)
    return Pieces(dialogue_of, first_of, last_of, tokens_of, targets_of, np.zeros(len(columns), bool)), left_out


def learn_replies_only(pieces: Pieces, store: TurnStore, marked: Sequence[bool]) -> Pieces:
    """Restrict the loss to the turns of speaker 1 in the marked folders, and drop pieces without any target.

    Args:
        pieces: Pieces of the store.
        store: Store of the pieces.
        marked: For each folder of the store, whether to restrict it.
    """
    folder = np.searchsorted(store.folder_starts, pieces.dialogue, side="right") - 1
    replies_only = np.array(marked, bool)[folder]
    starts = store.dialogue_starts[:-1]
    turn_index = np.arange(len(store.turn_starts) - 1) - np.repeat(starts, np.diff(store.dialogue_starts))
    reply_targets_before = _starts([(np.diff(store.turn_starts) + 1) * (turn_index % 2)])
    start = starts[pieces.dialogue]
    reply_targets = reply_targets_before[start + pieces.last] - reply_targets_before[start + pieces.first]
    targets = np.where(replies_only, reply_targets, pieces.targets)
    return replace(pieces, targets=targets, replies_only=replies_only).select(targets > 0)


def _cut(lengths: list[int], room: int, turn_tokens: int) -> tuple[list[tuple[int, int, int, int]], int]:
    """Cut a dialogue between turns.

    Args:
        lengths: Tokens of each turn.
        room: Tokens available for turns in a row.
        turn_tokens: Tokens of the marks around a turn.

    Returns:
        (first, last, tokens, targets) of the pieces, and the number of turns that do not even fit into an empty row.
    """
    bounds, first, used = [], 0, 0
    for index, length in enumerate(lengths):
        if used and used + length + turn_tokens > room:
            bounds.append((first, index))
            first, used = index, 0
        used += length + turn_tokens
        if used > room:  # this turn alone exceeds the room: leave it out
            first, used = index + 1, 0
    bounds.append((first, len(lengths)))
    parts = []
    for first, last in bounds:
        if last > first:
            content = sum(lengths[first:last])
            parts.append((first, last, content + (last - first) * turn_tokens, content + last - first))
    return parts, sum(length + turn_tokens > room for length in lengths)
