"""Decoding methods to compare, from a YAML file; grid.yaml beside this module is the default."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError, first_line
from chatbot.text.dialogue import valid_text
from chatbot.text.yaml_files import read_yaml

DEFAULT = Path(__file__).with_name("grid.yaml")
MAX_NUMBER = 100_000
MAX_NAME_CHARACTERS = 60
MAX_ABOUT_CHARACTERS = 200
ENOUGH_CONTEXTS = 30
"""With fewer contexts, only the methods of `few` are compared."""
ALL = "all"
LEAST = {"budget": 1, "subsets": 20, "resamples": 20, "examples": 1}
"""Smallest value of each number in a grid."""
KEYS = ("lengths", "methods", "few", *LEAST)


class GridError(XianliaoError):
    """A grid that cannot be used."""


@dataclass(frozen=True)
class Grid:
    """Decoding methods to compare and how to measure them; grid.yaml explains the fields."""

    lengths: tuple[int, ...]
    methods: dict[str, Any] = field(default_factory=dict)
    budget: int = 4000
    subsets: int = 100
    resamples: int = 1000
    examples: int = 12
    few: tuple[str, ...] = ()

    @classmethod
    def read(cls, path: str | Path | None = None) -> Grid:
        """Read a grid from a YAML file; None reads the default grid.

        Raises:
            GridError: The file cannot be read, or a key or value cannot be used.
        """
        path = DEFAULT if path is None else Path(path)
        try:
            content = read_yaml(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise GridError(f"The grid {path} cannot be read ({first_line(error)}). Check --grid.") from None
        if not isinstance(content, dict) or not isinstance(content.get("methods"), dict) or not content["methods"]:
            raise GridError(f"The grid {path} has no methods. xianliao-evaluate --print-grid prints one to begin with.")
        unknown = sorted(str(key) for key in content if key not in KEYS)
        if unknown:
            raise GridError(f"Unknown key {', '.join(unknown)} in grid {path}. Allowed keys: {', '.join(KEYS)}.")
        lengths = content.get("lengths", [128])
        if not isinstance(lengths, list) or not lengths or not all(_is_whole(length) for length in lengths):
            raise GridError(f"Grid {path}: lengths must be a list of whole numbers above 0, got {lengths!r}.")
        methods = {str(name): {} if changes is None else changes for name, changes in content["methods"].items()}
        few = content.get("few") or []
        if not isinstance(few, list) or not all(str(name) in methods for name in few):
            raise GridError(f"Grid {path}: few must be a list of names of its methods, got {few!r}.")
        for name in methods:
            if not name.strip() or len(name) > MAX_NAME_CHARACTERS or valid_text(name) != name:
                raise GridError(
                    f"Grid {path}: a method needs a name of at most {MAX_NAME_CHARACTERS} characters,"
                    f" got {name[:80]!r}."
                )
        return cls(tuple(sorted(set(lengths))), methods, **_numbers(content, path), few=tuple(map(str, few)))

    def only(self, names: Sequence[str]) -> Grid:
        """Return the grid with these methods, or with all its methods if the only name is "all".

        Raises:
            GridError: The grid has no method of a name.
        """
        if list(names) == [ALL]:
            return replace(self, few=())
        unknown = sorted({name for name in names if name not in self.methods})
        if unknown:
            raise GridError(f"Unknown method {', '.join(unknown)}. The grid has: {'; '.join(self.methods)}.")
        return replace(self, methods={name: self.methods[name] for name in self.methods if name in names}, few=())

    def for_contexts(self, count: int) -> Grid:
        """Return the grid with the methods that are compared on this number of contexts."""
        return self.only(self.few) if self.few and count < ENOUGH_CONTEXTS else self

    @property
    def about(self) -> dict[str, str]:
        """The explanation of every method that has one."""
        return {name: str(changes["about"]) for name, changes in self.methods.items() if "about" in changes}

    def settings(
        self, defaults: ReplySettings, limit: Callable[[ReplySettings], ReplySettings]
    ) -> dict[str, ReplySettings]:
        """Return the settings of every method for a checkpoint.

        Args:
            defaults: Settings of the checkpoint.
            limit: Function that keeps settings within the lengths of the checkpoint's model.

        Raises:
            GridError: A base or a setting is unknown or cannot be used.
        """
        result = {}
        for name, changes in self.methods.items():
            if not isinstance(changes, dict):
                raise GridError(f"The grid: method {name!r} must have settings, got {changes!r}.")
            changes = dict(changes)
            base = changes.pop("base", "checkpoint")
            if len(str(changes.pop("about", ""))) > MAX_ABOUT_CHARACTERS:
                raise GridError(
                    f"The grid: the text `about` of method {name!r} has more than {MAX_ABOUT_CHARACTERS} characters."
                )
            try:
                settings = self._base(base, defaults).with_changes(
                    **{str(field): value for field, value in changes.items()}
                )
            except XianliaoError as error:
                reason = first_line(error).rstrip(".")
                raise GridError(f"The grid: method {name!r} cannot be used ({reason}).") from None
            result[name] = limit(settings)
        return result

    def _base(self, name: str, defaults: ReplySettings) -> ReplySettings:
        """Return the settings that a method starts from; see grid.yaml."""
        floor = replace(
            defaults, repetition_penalty=1.0, no_repeat_ngram=0, repeat_cost=None, dry_multiplier=0.0, candidates=1
        )
        consistent = replace(floor, floor_start_tokens=None, max_reply_tokens=max(self.lengths))
        bases = {
            "checkpoint": defaults,
            "floor": floor,
            "consistent": consistent,
            "plain": replace(consistent, keep_eos=False),
        }
        if name not in list(bases):  # a list, because YAML can give a name that cannot be hashed
            raise GridError(f"unknown base {name!r}; use {', '.join(bases)}")
        return bases[name]


def _numbers(content: dict, path: Path) -> dict[str, int]:
    """Return the numbers that a grid sets.

    Raises:
        GridError: A number is out of range.
    """
    numbers = {name: content[name] for name in LEAST if name in content}
    for name, value in numbers.items():
        if not _is_whole(value) or value < LEAST[name]:
            raise GridError(
                f"Grid {path}: {name} must be a whole number from {LEAST[name]} to {MAX_NUMBER}, got {value!r}."
            )
    return numbers


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MAX_NUMBER
