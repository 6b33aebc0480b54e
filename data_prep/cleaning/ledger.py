"""Ledger: counts what happened to every dialogue and turn, by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

SAMPLES = 3
"""Turns that the report shows of each rule."""


@dataclass
class Ledger:
    """What happened, in counts: mergeable, in the order of the input.

    Attributes:
        dialogues: `read`, `kept_whole`, `split`, `dropped`; the last three add up to the first.
        pieces: Dialogues that came out.
        dropped: Dialogues dropped, by reason: that of their first dirty turn.
        dirty: Dirty turns, by reason, in dropped and in split dialogues.
        changed: Turns that a normaliser changed, by rule.
        samples: For each rule, a few turns: before and after, or the turn that went.
    """

    dialogues: Counter = field(default_factory=Counter)
    pieces: int = 0
    dropped: Counter = field(default_factory=Counter)
    dirty: Counter = field(default_factory=Counter)
    changed: Counter = field(default_factory=Counter)
    samples: dict[str, list[list[str]]] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Counts a dialogue that is read and dropped."""
        self.dialogues["read"] += 1
        self.dialogues["dropped"] += 1
        self.dropped[reason] += 1

    def show(self, rule: str, *texts: str) -> None:
        shown = self.samples.setdefault(rule, [])
        if len(shown) < SAMPLES:
            shown.append([text[:80] for text in texts])

    def to_json(self) -> dict:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: dict) -> Ledger:
        counters = {name: Counter(value[name]) for name in ("dialogues", "dropped", "dirty", "changed")}
        return cls(pieces=value["pieces"], samples=value["samples"], **counters)

    def add(self, other: Ledger) -> None:
        """Adds what came after."""
        self.pieces += other.pieces
        for mine, theirs in (
            (self.dialogues, other.dialogues),
            (self.dropped, other.dropped),
            (self.dirty, other.dirty),
            (self.changed, other.changed),
        ):
            mine.update(theirs)
        for rule, shown in other.samples.items():
            for texts in shown:
                self.show(rule, *texts)
