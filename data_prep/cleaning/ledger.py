"""Ledger: counts what happened to every dialogue and turn, by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

SAMPLES = 3
"""Number of examples that the report shows for each rule."""


@dataclass
class Ledger:
    """Counts over some dialogues, in the order of the input; ledgers can be added.

    Attributes:
        dialogues: `read`, `kept_whole`, `split`, `dropped`; the last three add up to the first.
        pieces: Number of clean dialogues that came of them.
        dropped: Dropped dialogues by reason, which is that of their first dirty turn.
        dirty: Dirty turns by reason, in dropped and in split dialogues.
        changed: Turns that a normaliser changed, by rule.
        samples: For each rule, a few turns: text before and after, or the text of a removed turn.
    """

    dialogues: Counter[str] = field(default_factory=Counter)
    pieces: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    dirty: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[list[str]]] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count a dialogue that was read and dropped."""
        self.dialogues["read"] += 1
        self.dialogues["dropped"] += 1
        self.dropped[reason] += 1

    def add_sample(self, rule: str, *texts: str) -> None:
        """Add an example of a rule, unless there are `SAMPLES` already."""
        samples = self.samples.setdefault(rule, [])
        if len(samples) < SAMPLES:
            samples.append([text[:80] for text in texts])

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ledger:
        counters = {name: Counter(value[name]) for name in ("dialogues", "dropped", "dirty", "changed")}
        return cls(pieces=value["pieces"], samples=value["samples"], **counters)

    def add(self, later: Ledger) -> None:
        """Add the counts of the dialogues that follow."""
        self.pieces += later.pieces
        self.dialogues.update(later.dialogues)
        self.dropped.update(later.dropped)
        self.dirty.update(later.dirty)
        self.changed.update(later.changed)
        for rule, samples in later.samples.items():
            for texts in samples:
                self.add_sample(rule, *texts)
