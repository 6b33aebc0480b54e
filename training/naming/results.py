"""Results of the measurements of xianliao-name on disk: a resumed command scores no dialogue and asks no question twice."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from chatbot.evaluation.cache import hash_of
from chatbot.storage import append_row, resume_rows
from training.state.run_folder import STATES

FILE = "measurements.jsonl"
Value = TypeVar("Value")


class Results:
    """Results by weights and measurement.

    Args:
        output: Folder of the run; the file is in its folder of saved states. None keeps the results in memory.
    """

    def __init__(self, output: Path | None = None):
        self.path = None if output is None else output / STATES / FILE
        rows = [] if self.path is None else resume_rows(self.path)
        self._values = {row["key"]: row["value"] for row in rows if {"key", "value"} <= row.keys()}
        self._weights = ""

    def of(self, weights: str) -> Results:
        """Return the results of a bot with these weights, such as `before`; they are kept in the same file."""
        part = Results()
        part.path, part._values, part._weights = self.path, self._values, weights
        return part

    def known(self, *measured: object) -> bool:
        """Return whether there is a result for these JSON values, which identify a measurement."""
        return self._key(measured) in self._values

    def recall(self, compute: Callable[[], Value], *measured: object) -> Value:
        """Return the result for these JSON values; without one, compute and save it."""
        key = self._key(measured)
        if key not in self._values:
            self._values[key] = compute()
            if self.path is not None:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                append_row(self.path, {"key": key, "value": self._values[key]})
        return self._values[key]

    def _key(self, measured: tuple[object, ...]) -> str:
        return hash_of([self._weights, *measured])
