"""Texts that make a careless regular expression slow: a beginning of a match, a run, and an end that does not match."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import product
from re import _constants as op  # type: ignore[attr-defined]
from re import _parser  # type: ignore[attr-defined]
from typing import NamedTuple

MANY = 100
"""A quantifier with a larger maximum is a run."""
MAX_BRANCHES = 4
"""Number of branches of an alternative whose beginnings are combined with what follows."""
CANDIDATES = " 1ax中-:：<>[]()（\n\t=_/.,@" + "".join(map(chr, range(33, 127)))
_CATEGORIES = {
    op.CATEGORY_DIGIT: r"\d",
    op.CATEGORY_NOT_DIGIT: r"\D",
    op.CATEGORY_SPACE: r"\s",
    op.CATEGORY_NOT_SPACE: r"\S",
    op.CATEGORY_WORD: r"\w",
    op.CATEGORY_NOT_WORD: r"\W",
}
_REPEATS = (op.MAX_REPEAT, op.MIN_REPEAT, op.POSSESSIVE_REPEAT)


class Run(NamedTuple):
    """Text that repeats a unit.

    Attributes:
        before: Text before the run.
        unit: The repeated text.
        after: Text behind the run.
    """

    before: str
    unit: str
    after: str

    def text(self, length: int) -> str:
        """Return the text with a run of about `length` characters."""
        return self.before + self.unit * (length // len(self.unit)) + self.after


def runs_of(pattern: re.Pattern) -> Iterator[Run]:
    """Yield texts for a pattern.

    For each quantifier without a small maximum: the shortest match of what precedes it, a run of what it repeats, and
    several ends. And the beginnings themselves, repeated.
    """
    begins: dict[tuple[str, str], None] = {}
    for prefix in _walk(list(_parser.parse(pattern.pattern, pattern.flags)), ["", "a"], begins):
        begins.setdefault(("", prefix))
    for prefix, unit in begins:
        for run in dict.fromkeys((unit, " ", "\n", prefix + unit) if prefix else (unit, unit + " ", unit + "\n")):
            if run:
                for end in ("", "x" * 100, "：", "\n\0"):
                    yield Run(prefix, run, end)


def _walk(items: list, prefixes: list[str], begins: dict[tuple[str, str], None]) -> list[str]:
    """Return short matches of the items behind each prefix; add (text before, unit) of the runs to `begins`."""
    for kind, value in items:
        if kind in _REPEATS:
            least, most, body = value
            inner = _walk(list(body), [""], {})
            if most > MANY:
                units = dict.fromkeys((*inner, *_samples(list(body))))
                begins.update(dict.fromkeys(product(prefixes, units)))
            after = _walk(list(body), prefixes, begins)
            repeated = [prefix + unit * least for prefix, unit in product(prefixes, inner[:2])]
            prefixes = [*([] if least else prefixes), *(repeated if least else after)]
        elif kind is op.BRANCH:
            ends = [_walk(list(branch), prefixes, begins) for branch in value[1]]
            prefixes = [text for number in range(MAX_BRANCHES) for end in ends for text in end[number : number + 1]]
        elif kind is op.SUBPATTERN:
            prefixes = _walk(list(value[-1]), prefixes, begins)
        elif kind is op.ATOMIC_GROUP:
            prefixes = _walk(list(value), prefixes, begins)
        elif kind is op.GROUPREF_EXISTS:
            prefixes = prefixes + _walk(list(value[1]), prefixes, begins)
        elif kind in (op.ASSERT, op.ASSERT_NOT):
            if value[0] > 0:
                _walk(list(value[1]), prefixes, begins)
        elif samples := _samples([(kind, value)]):
            prefixes = [prefix + samples[0] for prefix in prefixes]
        prefixes = list(dict.fromkeys(prefixes))[: 3 * MAX_BRANCHES]
    return prefixes


def _samples(items: list) -> list[str]:
    """Return some characters that one item matches; empty for several items or an item that matches no character."""
    if len(items) != 1:
        return []
    kind, value = items[0]
    if kind is op.LITERAL:
        return [chr(value)]
    if kind is op.NOT_LITERAL:
        return [c for c in CANDIDATES if ord(c) != value][:4]
    if kind is op.ANY:
        return list(CANDIDATES[:5])
    if kind is op.IN:
        explicit = [chr(v if k is op.LITERAL else v[0]) for k, v in value if k in (op.LITERAL, op.RANGE)]
        candidates = CANDIDATES if value[0][0] is op.NEGATE else [*explicit, *CANDIDATES]
        return [c for c in dict.fromkeys(candidates) if _is_in(c, value)][:6]
    return []


def _is_in(character: str, members: list) -> bool:
    """Whether a character is a member of a class."""
    is_member = any(
        (kind is op.LITERAL and ord(character) == value)
        or (kind is op.RANGE and value[0] <= ord(character) <= value[1])
        or (kind is op.CATEGORY and re.match(_CATEGORIES[value], character) is not None)
        for kind, value in members
    )
    return is_member != (members[0][0] is op.NEGATE)
