"""Which decoding methods are compared, from a YAML file; grid.yaml beside this module is the default."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError, first_line
from chatbot.text.dialogue import valid_text

DEFAULT = Path(__file__).with_name("grid.yaml")
MOST = 100_000
NUMBERS = ("budget", "subsets", "resamples", "examples")


class GridError(XianliaoError):
    """A grid that cannot be used."""


@dataclass(frozen=True)
class Grid:
    """See grid.yaml."""

    lengths: tuple[int, ...]
    methods: dict[str, dict] = field(default_factory=dict)
    budget: int = 4000
    subsets: int = 100
    resamples: int = 1000
    examples: int = 12

    @classmethod
    def read(cls, path: str | Path | None = None) -> Grid:
        """The grid of a file; None is the default one.

        Raises:
            GridError: The file cannot be read or asks for what there is not.
        """
        path = DEFAULT if path is None else Path(path)
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise GridError(f"The grid {path} cannot be read ({first_line(error)}).") from None
        if not isinstance(content, dict) or not isinstance(content.get("methods"), dict) or not content["methods"]:
            raise GridError(f"The grid {path} has no methods; see {DEFAULT.name} of chatbot/evaluation.")
        unknown = sorted(set(content) - {"lengths", "methods", *NUMBERS})
        if unknown:
            raise GridError(f"The grid {path} has {', '.join(map(str, unknown))}, which is nothing of a grid.")
        lengths = content.get("lengths", [128])
        if not isinstance(lengths, list) or not lengths or not all(_whole(length) for length in lengths):
            raise GridError(f"The grid {path}: lengths must be a list of whole numbers above 0, got {lengths!r}.")
        for name in NUMBERS:
            least = 20 if name in ("subsets", "resamples") else 1
            if name in content and not (_whole(content[name]) and least <= content[name] <= MOST):
                raise GridError(
                    f"The grid {path}: {name} must be a whole number from {least} to {MOST}, got {content[name]!r}."
                )
        methods = {str(name): {} if changes is None else changes for name, changes in content["methods"].items()}
        for name in methods:
            if not name.strip() or len(name) > 60 or valid_text(name) != name:
                raise GridError(f"The grid {path}: a method needs a name of at most 60 characters, got {name[:80]!r}.")
        numbers = {name: content[name] for name in NUMBERS if name in content}
        return cls(tuple(sorted(set(lengths))), methods, **numbers)

    def settings(
        self, own: ReplySettings, within: Callable[[ReplySettings], ReplySettings]
    ) -> dict[str, ReplySettings]:
        """Settings of every method for a checkpoint.

        Args:
            own: The checkpoint's.
            within: Keeps settings within the lengths that its model has.

        Raises:
            GridError: A base or a setting is unknown or cannot be used.
        """
        found = {}
        for name, changes in self.methods.items():
            if not isinstance(changes, dict):
                raise GridError(f"The grid: method {name!r} must have settings, got {changes!r}.")
            changes = dict(changes)
            base = changes.pop("base", "checkpoint")
            try:
                settings = self._base(base, own).with_changes(**{str(field): value for field, value in changes.items()})
            except XianliaoError as error:
                reason = first_line(error).rstrip(".")
                raise GridError(f"The grid: method {name!r} cannot be used ({reason}).") from None
            found[name] = within(settings)
        return found

    def _base(self, name: str, own: ReplySettings) -> ReplySettings:
        if name == "checkpoint":
            return own
        floor = replace(own, repetition_penalty=1.0, no_repeat_ngram=0, repeat_cost=None, candidates=1)
        unfloored = replace(floor, floor_start_tokens=None, max_reply_tokens=max(self.lengths))
        known = {"floor": floor, "consistent": unfloored, "plain": replace(unfloored, keep_eos=False)}
        if name not in known:
            raise GridError(f"there is no base {name!r}; take checkpoint, {', '.join(known)}")
        return known[name]


def _whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value <= MOST
