"""Measure how apt a ranking's choice among rated candidates is: `python -m tests.benchmarks.choosing`.

checkpoints/recipe/judged/README.md describes the candidates. Nothing is generated, so a new ranking is compared within
seconds with the present one, with a random choice and with the best choice that the candidates allow.
"""

from __future__ import annotations

import json
import lzma
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np

from tests.conftest import ROOT

FILE = ROOT / "checkpoints" / "recipe" / "judged" / "candidates.jsonl.xz"
COOL = slice(0, 4)
"""Candidates at temperature .6; the others were drawn at .8."""

Ranking = Callable[[dict[str, Any]], float]
"""Score of a candidate: the one with the highest score is chosen."""


@dataclass(frozen=True)
class Context:
    """A rated context.

    Attributes:
        dialogues: Set of dialogues: plain, ordinary or conversations.
        candidates: Entries of the file.
        ratings: Mean rating of each candidate, 0 to 2.
    """

    dialogues: str
    candidates: list[dict[str, Any]]
    ratings: list[float]


def read_contexts() -> list[Context]:
    """Return all contexts of the file."""
    with lzma.open(FILE, "rt", encoding="utf-8") as lines:
        rows = [json.loads(line) for line in lines]
    return [Context(row["set"], row["candidates"], [fmean(c["ratings"]) for c in row["candidates"]]) for row in rows]


def likelihood(exponent: float) -> Ranking:
    """Return log p divided by a power of the number of tokens, the end of the turn included."""
    return lambda candidate: candidate["log_prob"] / (candidate["tokens"] + 1) ** exponent


def chosen(contexts: Sequence[Context], ranking: Ranking, part: slice = slice(None)) -> list[float]:
    """Return the rating of the chosen candidate of each context."""
    return [
        context.ratings[part][int(np.argmax([ranking(candidate) for candidate in context.candidates[part]]))]
        for context in contexts
    ]


def table(contexts: Sequence[Context]) -> list[tuple[str, list[float]]]:
    """Return the name of each choice, and the rating that it gives in each context."""
    by_exponent = {name: likelihood(value) for name, value in (("0", 0.0), ("1/2", 0.5), ("1", 1.0))}
    return [
        ("one reply, temperature .6", [context.ratings[0] for context in contexts]),
        ("one reply, temperature .8", [context.ratings[-1] for context in contexts]),
        *((f"best of 4, log p / n^({name})", chosen(contexts, by_exponent[name], COOL)) for name in by_exponent),
        ("best of 8, log p / n^(1/2)", chosen(contexts, by_exponent["1/2"])),
        ("best rating of 4", [max(context.ratings[COOL]) for context in contexts]),
        ("best rating of 8", [max(context.ratings) for context in contexts]),
    ]


def row(name: str, contexts: Sequence[Context], ratings: Sequence[float]) -> str:
    """Return a row of the table: the mean of each set and of all, half a 95 % interval, and the share of zeros."""
    sets = ("plain", "ordinary", "conversations")
    means = [fmean(r for c, r in zip(contexts, ratings, strict=True) if c.dialogues == part) for part in sets]
    half = 1.96 * float(np.std(ratings)) / math.sqrt(len(ratings))
    zeros = fmean(rating == 0 for rating in ratings)
    cells = " | ".join(f"{mean:.2f}" for mean in means)
    return f"| {name} | {cells} | {fmean(ratings):.2f} ± {half:.2f} | {zeros:.0%} |"


def main() -> None:
    """Print the table."""
    contexts = read_contexts()
    print("| choice | plain | ordinary | conversations | all | zeros |\n|---|--:|--:|--:|--:|--:|")
    for name, ratings in table(contexts):
        print(row(name, contexts, ratings))


if __name__ == "__main__":
    main()
