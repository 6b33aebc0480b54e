"""Rule: one named, switchable part of cleaning."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import wraps

Normaliser = Callable[[str], str]
Filter = Callable[[str], bool]


@dataclass(frozen=True)
class Rule:
    """Name and switch of a rule.

    Attributes:
        name: Name for `--skip` and `--also`.
        summary: Sentence for `--list-rules`, the report and the README.
        is_on: Whether the rule is on by default.
    """

    name: str
    summary: str
    is_on: bool = field(default=True, kw_only=True)


@dataclass(frozen=True)
class NormaliserRule(Rule):
    """Rule that changes the text of a turn.

    Attributes:
        apply: Returns the changed text.
    """

    apply: Normaliser = field(kw_only=True)


@dataclass(frozen=True)
class FilterRule(Rule):
    """Rule that removes turns by their text alone.

    Attributes:
        matches: Whether a turn with this text is removed.
    """

    matches: Filter = field(kw_only=True)


def stable(rule: Normaliser) -> Normaliser:
    """Repeat a normaliser until the text stays the same; it ends because every change makes the text shorter."""

    @wraps(rule)
    def until_stable(text: str) -> str:
        while (changed := rule(text)) != text:
            text = changed
        return text

    return until_stable


def remover(*patterns: str, needs: str = "", flags: int = 0) -> Normaliser:
    """Return a normaliser that removes every match of the patterns.

    Args:
        patterns: Regular expressions in `re.VERBOSE` form.
        needs: Every match contains one of these characters, so texts without them are not searched. Empty: search all.
        flags: Further flags of `re`.
    """
    sub = re.compile("|".join(f"(?:{pattern}\n)" for pattern in patterns), flags | re.VERBOSE).sub
    is_needless = frozenset(needs).isdisjoint

    @stable
    def remove(text: str) -> str:
        return text if needs and is_needless(text) else sub("", text)

    return remove
