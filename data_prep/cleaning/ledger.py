"""Ledger: counts what happened to every dialogue and turn, by reason."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from data_prep.reading.labelled.prefixes import sign_of
from data_prep.reading.records import LEFT_OUT

MAX_LABELS = 2000
"""Maximum number of different labels that are counted; beyond it, the rarer half is dropped."""
SAMPLES, NOTICES = 3, 30
"""Number of examples that the report shows for each rule, and of different messages that were left out at reading."""


COUNTERS = ("dialogues", "turns", "dropped", "left_out", "dirty", "changed", "suspicious")
SUSPICIOUS_SHARE = 0.2
"""Minimum share of turns with one of these signs for a warning: one turn in five."""
LEAST_TURNS = 4
"""Minimum number of turns for a warning; fewer turns show nothing."""
LEAST_SIGNS = 2
_CLOCK = re.compile(r"(?<!\d)\d{1,2}[:：]\d{2}(?!\d)")
_PRIVATE = re.compile("[\ue000-\uf8ff\U000f0000-\U0010fffd]")


@dataclass
class Ledger:
    """Counts over some dialogues, in the order of the input; ledgers can be added.

    Attributes:
        dialogues: `read`, `kept_whole`, `split`, `dropped`; the last three add up to the first.
        turns: `read`, in the dialogues read, and `removed`, of these; the others are in `pieces`.
        pieces: Number of clean dialogues that the dialogues read have become.
        dropped: Number of dropped dialogues by reason; a dirty dialogue has the reason of its first dirty turn.
        left_out: Messages of chat logs that were left out when the files were read, by reason.
        dirty: Turns that cleaning removed by reason, in dropped and in split dialogues.
        changed: Turns that a normaliser changed, by rule.
        suspicious: Signs that the format of a file was recognised wrongly: number of turns (`turns`), of turns with a
            time of day (`clock`) or with private-use characters (`private`), and of turns that begin with a word and a
            colon (`label:…`).
        samples: For each rule, a few turns: text before and after, or the text of a removed turn.
    """

    dialogues: Counter[str] = field(default_factory=Counter)
    turns: Counter[str] = field(default_factory=Counter)
    pieces: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    left_out: Counter[str] = field(default_factory=Counter)
    dirty: Counter[str] = field(default_factory=Counter)
    changed: Counter[str] = field(default_factory=Counter)
    suspicious: Counter[str] = field(default_factory=Counter)
    samples: dict[str, list[list[str]]] = field(default_factory=dict)

    def drop(self, reason: str) -> None:
        """Count a dialogue that was read and dropped."""
        self.dialogues["read"] += 1
        self.dialogues["dropped"] += 1
        self.dropped[reason] += 1

    def add_sample(self, rule: str, *texts: str) -> None:
        """Add an example of a rule, unless there are enough already; a message that was left out only once."""
        samples, added = self.samples.setdefault(rule, []), [text[:80] for text in texts]
        if rule in LEFT_OUT and added in samples:
            return
        if len(samples) < (NOTICES if rule in LEFT_OUT else SAMPLES):
            samples.append(added)

    def inspect(self, raw: Sequence[str]) -> None:
        """Count the signs in the turns of a dialogue that was read, before they are cleaned."""
        self.suspicious["turns"] += len(raw)
        for index, turn in enumerate(raw):
            self.suspicious["clock"] += _CLOCK.search(turn) is not None
            self.suspicious["private"] += _PRIVATE.search(turn) is not None
            if label := sign_of(turn):
                self.suspicious[f"label:{index % 2}:{label}"] += 1
            if len(self.suspicious) > MAX_LABELS:
                self.suspicious = Counter(dict(self.suspicious.most_common(MAX_LABELS // 2)))

    def warnings(self) -> list[str]:
        """Return one sentence for each sign that the format of a file was recognised wrongly."""
        turns, sentences = self.suspicious["turns"], []
        if turns < LEAST_TURNS:
            return []
        enough = max(LEAST_SIGNS, SUSPICIOUS_SHARE * turns)
        if self.suspicious["clock"] >= enough:
            sentences.append(
                f"{self.suspicious['clock']} of {turns} turns hold a time of day: is this a chat log of an unknown form?"
                " Look at the set with --preview 10."
            )
        labels = [(name, count) for name, count in self.suspicious.items() if name.startswith("label:")]
        name, count = max(labels, key=lambda item: item[1], default=("", 0))
        if count >= enough:
            sentences.append(
                f"{count} of {turns} turns begin with “{name.split(':', 2)[2]}”, which would be learnt as"
                " speech. Name the speakers in one of the forms of data_prep/README.md."
            )
        if self.suspicious["private"]:
            sentences.append(
                f"{self.suspicious['private']} of {turns} turns hold private-use characters, which mean nothing"
                " outside the program that wrote them; the rule control_characters removes them."
            )
        return sentences

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Ledger:
        counters = {name: Counter(value[name]) for name in COUNTERS}
        return cls(pieces=value["pieces"], samples=value["samples"], **counters)

    def add(self, later: Ledger) -> None:
        """Add the counts of the dialogues that follow."""
        self.pieces += later.pieces
        self.dialogues.update(later.dialogues)
        self.turns.update(later.turns)
        self.dropped.update(later.dropped)
        self.left_out.update(later.left_out)
        self.dirty.update(later.dirty)
        self.changed.update(later.changed)
        self.suspicious.update(later.suspicious)
        for rule, samples in later.samples.items():
            for texts in samples:
                self.add_sample(rule, *texts)
