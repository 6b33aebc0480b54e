"""Ratings read back from judges, and their figures: means, shares, preferences and agreement."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from chatbot.errors import FileError
from chatbot.evaluation import intervals
from chatbot.evaluation.aptness.sheets import Key, Row, orders

HIGHEST = 2
"""Highest score: 0 does not fit the context, 1 acceptable, 2 apt."""

Scores = dict[int, list[float]]
"""For each row id: one score per distinct reply of the row, in the order of the key."""


@dataclass(frozen=True)
class Judge:
    """Ratings of one judge.

    Attributes:
        name: Name of the file of ratings.
        scores: The ratings.
        reversed: Ratings of the same replies shown in the opposite order; empty if they were shown once.
    """

    name: str
    scores: Scores
    reversed: Scores


def read_scores(path: Path, key: Key) -> Judge:
    """Read a judge's ratings: JSON lines with `sheet`, `id` and `scores`, from an endpoint also `reversed`.

    A later line for the same row replaces an earlier one.

    Raises:
        FileError: A line is damaged or does not belong to a sheet of this key, or the file has no ratings.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise FileError(f"The scores {path} cannot be read ({error}). Check --scores.") from None
    sheets: dict[int, dict[int, tuple[Row, list[int]]]] = {}
    scores: Scores = {}
    swapped: Scores = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            sheet = int(entry["sheet"])
            if sheet not in sheets:
                sheets[sheet] = {row.id: (row, order) for row, order in orders(key, sheet)}
            row, order = sheets[sheet][entry["id"]]
            scores[row.id] = _in_key_order(entry["scores"], order)
            if entry.get("reversed") is not None:
                swapped[row.id] = _in_key_order(entry["reversed"], order)
        except (ValueError, TypeError, KeyError, RecursionError):
            raise FileError(
                f"Line {number} of {path} is not a rating of these sheets: it needs sheet, id and one score from 0 to"
                f" {HIGHEST} for each reply."
            ) from None
    if not scores:
        raise FileError(f"{path} has no rating. Rate a sheet first.")
    return Judge(path.name, scores, swapped)


def _in_key_order(given: object, order: Sequence[int]) -> list[float]:
    """Return scores in the order of the key; raise ValueError for a wrong number or value of scores."""
    if not isinstance(given, list) or len(given) != len(order):
        raise ValueError("wrong number of scores")
    result = [0.0] * len(order)
    for score, position in zip(given, order, strict=True):
        if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= HIGHEST:
            raise ValueError("wrong score")
        result[position] = float(score)
    return result


def summarise(key: Key, judges: Sequence[Judge], resamples: int = 1000) -> dict[str, Any]:
    """Return the figures of all sets and systems.

    Returns:
        `judges`: name, number of ratings, and kappa of the two orders if both were shown. `agreement`: weighted kappa
            of
        each pair of judges. `sets`: for each set its number of rated contexts, and for each system the mean score with
        its interval, the shares of 0, 1 and 2, and its preference over each other system. All intervals are over
        contexts.
    """
    sets: dict[str, Any] = {}
    for name in dict.fromkeys(row.set for row in key.rows):
        rows = [row for row in key.rows if row.set == name and any(row.id in judge.scores for judge in judges)]
        if rows:
            by_system = {system: _scores_of(system, rows, judges) for system in key.systems}
            sets[name] = {
                "contexts": len(rows),
                "systems": {
                    system: {
                        **_level(values, resamples),
                        "preferred_to": {
                            other: _preference(values, by_system[other], resamples)
                            for other in key.systems
                            if other != system
                        },
                    }
                    for system, values in by_system.items()
                },
            }
    pairs = list(combinations(judges, 2))
    return {
        "judges": [
            {
                "name": judge.name,
                "rows": len(judge.scores),
                "order_kappa": weighted_kappa(*_common(judge.scores, judge.reversed)) if judge.reversed else None,
            }
            for judge in judges
        ],
        "agreement": [
            {"judges": [a.name, b.name], "kappa": weighted_kappa(*_common(a.scores, b.scores))} for a, b in pairs
        ],
        "sets": sets,
    }


def _scores_of(system: str, rows: Iterable[Row], judges: Sequence[Judge]) -> list[list[float | None]]:
    """Return a system's score by row and judge; None where a judge has not rated the row."""
    result = []
    for row in rows:
        position = next(index for index, systems in enumerate(row.systems) if system in systems)
        given: list[float | None] = []
        for judge in judges:
            scores = [part[row.id][position] for part in (judge.scores, judge.reversed) if row.id in part]
            given.append(sum(scores) / len(scores) if scores else None)
        result.append(given)
    return result


def _level(values: list[list[float | None]], resamples: int) -> dict[str, Any]:
    """Return mean and shares of 0, 1 and 2, with intervals over contexts; scores between these are rounded."""
    rated = [[score for score in row if score is not None] for row in values]
    counts = [len(row) for row in rated]
    total = sum(counts)
    result: dict[str, Any] = {
        "mean": sum(map(sum, rated)) / total,
        "interval": list(intervals.ratio(list(map(sum, rated)), counts, resamples)),
    }
    for level in range(HIGHEST + 1):
        hits = [sum(int(score + 0.5) == level for score in row) for row in rated]
        share = sum(hits) / total
        result[f"share_{level}"] = share
        result[f"share_{level}_interval"] = list(intervals.ratio(hits, counts, resamples))
    return result


def _preference(values: list[list[float | None]], others: list[list[float | None]], resamples: int) -> dict[str, Any]:
    """Return how often a judge scored one system higher than another, and its share of the decided cases."""
    wins, losses, ties = [], [], 0
    for row, other in zip(values, others, strict=True):
        pairs = [(a, b) for a, b in zip(row, other, strict=True) if a is not None and b is not None]
        wins.append(sum(a > b for a, b in pairs))
        losses.append(sum(a < b for a, b in pairs))
        ties += sum(a == b for a, b in pairs)
    decided = [won + lost for won, lost in zip(wins, losses, strict=True)]
    share = sum(wins) / sum(decided) if sum(decided) else None
    interval = None if share is None else list(intervals.ratio(wins, decided, resamples))
    return {"wins": sum(wins), "losses": sum(losses), "ties": ties, "share": share, "interval": interval}


def _common(a: Mapping[int, list[float]], b: Mapping[int, list[float]]) -> tuple[list[float], list[float]]:
    """Return the scores of the replies that both judges have rated."""
    rows = sorted(set(a) & set(b))
    return [score for row in rows for score in a[row]], [score for row in rows for score in b[row]]


def weighted_kappa(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Return Cohen's kappa with quadratic weights (Cohen 1968).

    kappa = 1 - observed mean of (a - b)^2 / mean of (a - b)^2 if the two judges were independent.

    Args:
        a, b: Scores of the same replies by two judges.

    Returns:
        1 means full agreement, 0 agreement by chance. None without scores, or if both judges gave the same score to all
        replies.
    """
    first, second = np.asarray(a, float), np.asarray(b, float)
    if not len(first):
        return None
    observed = float(np.mean((first - second) ** 2))
    expected = float(np.mean((first[:, None] - second[None, :]) ** 2))
    return None if expected == 0 else 1 - observed / expected
