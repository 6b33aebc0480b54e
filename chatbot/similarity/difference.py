"""Difference of two texts by their characters."""

from __future__ import annotations

from difflib import SequenceMatcher

MAX_CHARACTERS = 200
"""Number of characters at the start of a text that are compared; the time grows with their square."""


def difference(first: str, second: str) -> float:
    """Return 1 - 2 M / T: M characters match of T in both texts (`difflib`). 0 for equal texts, 1 for disjoint ones."""
    if first == second:
        return 0.0
    parts = (first[:MAX_CHARACTERS], second[:MAX_CHARACTERS])
    return 1 - SequenceMatcher(None, *parts, autojunk=False).ratio()
