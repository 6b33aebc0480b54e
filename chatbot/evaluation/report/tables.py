"""Tables of the report, with the best values of each column; Markdown and HTML show the same."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from chatbot.evaluation.grid import ENOUGH_CONTEXTS

Goal = Literal["low", "high", "people", ""]
"""What is good in a column: low or high values, or values like those of people; empty if none is better."""

Report = dict[str, Any]
PEOPLE: Literal["people"] = "people"
UNITS = "units"
ROWS = {PEOPLE, UNITS, "witten bell trigram", "unigram"}
"""Names of rows that are not names of methods or checkpoints."""
FORBIDS = "forbids"


@dataclass(frozen=True)
class Column:
    """A column of a table of methods.

    Attributes:
        key: Key in report.json.
        heading: Its heading.
        goal: What is good.
        meaning: Explanation in a sentence.
        places: Decimal places.
    """

    key: str
    heading: str
    goal: Goal = ""
    meaning: str = ""
    places: int = 3


ENDINGS = (
    Column("longest_tokens", "longest, tokens", "", "Length of the longest reply.", 0),
    Column("bound_tokens", "bound", "", "No reply of this method can be longer, on any model.", 0),
    Column(
        "stop_reasons",
        "eos / floor / limit",
        "",
        "Replies that the model ended, the floor ended, or that were cut off.",
    ),
    Column("rep_4", "rep-4", "low", "Share of repeated 4-grams of characters."),
    Column(
        "repetitive",
        "repetitive",
        "low",
        "Replies with two or more characters three times in a row, or with more than half of their pairs repeated.",
    ),
    Column("echo", "echo", "low", "Replies that share 80 % of their characters with the message."),
    Column("empty", "empty", "low", "Replies without a character."),
)
REPLIES = (
    Column(
        "reference_cost_nats_per_unit",
        "cost on references, nats/unit",
        "low",
        "How much less probable the decoding rules make what people really replied, in nats/unit; forbids: the share of"
        " these replies that they make impossible.",
        4,
    ),
    Column("dist_1", "Dist-1", PEOPLE, "Share of different characters."),
    Column("dist_2", "Dist-2", PEOPLE, "Share of different pairs of characters."),
    Column("word_dist_1", "word Dist-1", PEOPLE, "Share of different words."),
    Column("word_dist_2", "word Dist-2", PEOPLE, "Share of different pairs of words."),
    Column(
        "ent_4",
        "Ent-4",
        PEOPLE,
        "How evenly the runs of four characters are spread (their entropy); more is more varied.",
    ),
    Column("bleu_2", "BLEU-2", "high", "Pairs of characters shared with the reply of a person.", 1),
    Column("bleu_4", "BLEU-4", "high", "4-grams of characters shared with the reply of a person.", 1),
    Column(
        "wrd", "1 - WRD", "high", "Likeness in meaning to the reply of a person, by token vectors; the same gives 1."
    ),
    Column("greedy_matching", "greedy matching", "high", "Likeness to the reply of a person, token by token."),
    Column("embedding_average", "embedding average", "high", "Likeness of the mean vectors."),
    Column("mean_characters", "characters", PEOPLE, "Mean length of the replies.", 1),
)


@dataclass(frozen=True)
class Cell:
    """A cell of a table.

    Attributes:
        text: What it says.
        spread: Half of the interval, or its upper end for 0; empty without an interval.
        value: Number to sort by; None sorts last.
        is_best: Whether no other value of the column is clearly better.
    """

    text: str
    spread: str = ""
    value: float | None = None
    is_best: bool = False


@dataclass(frozen=True)
class Table:
    """Columns and rows; the first column holds names, `last` is the row of people, `note` a sentence below the table."""

    columns: list[Column]
    rows: list[list[Cell]]
    last: list[Cell] | None = None
    note: str = ""


def methods_of(report: Report) -> list[tuple[str, Report]]:
    """Return the name and metrics of every method for every checkpoint. A single checkpoint's name is omitted."""
    is_single = len(report["checkpoints"]) == 1
    return [
        (label(part["name"], name, is_single), row)
        for part in report["checkpoints"]
        for name, row in part["decoding"].items()
    ]


def speakers_of(turns: Sequence[str]) -> list[str]:
    """Return who says each turn of a context: the last one is the message that is answered."""
    return ["user" if (len(turns) - number) % 2 else "bot" for number in range(len(turns))]


def label(checkpoint: str, method: str, is_single: bool) -> str:
    """Return the name of a row: the method, after the name of its checkpoint if there are several."""
    return method if is_single else f"{checkpoint} · {method}"


def settings_text(settings: dict[str, Any]) -> str:
    """Return settings as one line; for a list of words, only the number of words is given."""
    shown = [
        f"{key} ({len(value)} entries)" if isinstance(value, (list, tuple)) else f"{key} {value}"
        for key, value in settings.items()
    ]
    return ", ".join(shown)


def is_word(cell: Cell) -> bool:
    """Whether a cell holds a word of the report, which has a translation, rather than a name or a number."""
    return cell.text in ROWS or cell.text == FORBIDS


def meanings(table: Table) -> list[tuple[list[str], str]]:
    """Return the explained columns of a table: the headings that share an explanation, and the explanation."""
    texts: dict[str, list[str]] = {}
    for column in table.columns:
        if column.meaning:
            texts.setdefault(column.meaning, []).append(column.heading)
    return [(headings, meaning) for meaning, headings in texts.items()]


def model_table(report: Report) -> Table:
    """Return nats/unit and perplexity of the checkpoints and baselines."""
    goal: Goal = "low" if report["dialogues"] >= ENOUGH_CONTEXTS else ""
    nats = Column("nats_per_unit", "nats/unit", goal, "How badly the model predicts what people said.", 4)
    columns = [Column("", "model"), nats, Column("", "perplexity/unit", "", "Exponential of nats/unit.")]
    qualities = [
        {**part["quality"], "intervals": {nats.key: part["quality"]["interval"]}} for part in report["checkpoints"]
    ]
    rows = [
        [Cell(part["name"]), cell, _plain(quality["perplexity_per_unit"], 2)]
        for part, quality, cell in zip(report["checkpoints"], qualities, _cells(nats, qualities, None), strict=True)
    ]
    for name in ("witten_bell_trigram", "unigram"):
        if name in report.get("baselines", {}):
            value = report["baselines"][name]
            rows.append([Cell(name.replace("_", " ")), _plain(value, 4), _plain(math.exp(value), 2)])
    return Table(columns, rows)


def turn_table(report: Report) -> Table:
    """Return nats/unit of the checkpoints by turn."""
    entries = [{entry["turn"]: entry for entry in part["quality"]["by_turn"]} for part in report["checkpoints"]]
    units = {turn: entry["units"] for by_turn in entries for turn, entry in by_turn.items()}
    goal: Goal = "low" if report["dialogues"] >= ENOUGH_CONTEXTS else ""
    columns, cells = [Column("", "nats/unit of turn")], []
    for turn in units:
        column = Column("nats_per_unit", str(turn), goal)
        rows = [{**by_turn[turn], "intervals": {column.key: by_turn[turn]["interval"]}} for by_turn in entries]
        columns.append(column)
        cells.append(_cells(column, rows, None))
    names = [part["name"] for part in report["checkpoints"]]
    rows_of_cells = [[Cell(name), *row] for name, *row in zip(names, *cells, strict=True)]
    return Table(columns, rows_of_cells, [Cell(UNITS), *(Cell(str(count), "", count) for count in units.values())])


def ending_table(report: Report) -> Table:
    """Return whether and how the replies of each method end, and how often they repeat."""
    limits = [
        Column(f"r_{length}", f"r_{length}", "low", "Share of replies without an end after so many tokens.")
        for length in report["lengths"]
    ]
    table = _table_of_methods(report, [*limits, *ENDINGS])
    texts = [{f"{row[at].text} {row[at].spread}".strip() for row in table.rows} for at in range(1, len(limits) + 1)]
    same = Counter(next(iter(values)) for values in texts if len(values) == 1)
    text, count = max(same.items(), key=lambda item: item[1], default=("", 0))
    if count < 2:
        return table
    constant = [at for at, values in enumerate(texts, 1) if values == {text}]
    note = f"{', '.join(table.columns[at].heading for at in constant)}: {text} for every method."

    def without(cells: Sequence[Cell]) -> list[Cell]:
        return [cell for at, cell in enumerate(cells) if at not in constant]

    columns = [column for at, column in enumerate(table.columns) if at not in constant]
    return Table(columns, list(map(without, table.rows)), None if table.last is None else without(table.last), note)


def reply_table(report: Report) -> Table:
    """Return likeness to the references and diversity of each method."""
    rows = [*(row for _, row in methods_of(report)), report["reference"]]
    return _table_of_methods(
        report, [column for column in REPLIES if any(row.get(column.key) is not None for row in rows)]
    )


def _table_of_methods(report: Report, columns: list[Column]) -> Table:
    people, methods = report["reference"], methods_of(report)
    cells = [_cells(column, [row for _, row in methods], people) for column in columns]
    rows = [[Cell(name), *row] for (name, _), *row in zip(methods, *cells, strict=True)]
    last = [Cell(PEOPLE), *(_cell(column, people) for column in columns)]
    return Table([Column("", "decoding"), *columns], rows, last)


def _cells(column: Column, rows: Sequence[Report], people: Report | None) -> list[Cell]:
    cells = [_cell(column, row) for row in rows]
    goal = column.goal if all(row.get("replies", ENOUGH_CONTEXTS) >= ENOUGH_CONTEXTS for row in rows) else ""
    best = best_of(
        [_interval(row, column.key) for row in rows], goal, None if people is None else people.get(column.key)
    )
    return [replace(cell, is_best=is_best) for cell, is_best in zip(cells, best, strict=True)]


def _interval(row: Report, key: str) -> tuple[float, float, float] | None:
    """Return a value and the ends of its interval; None if it was not measured."""
    value = row.get(key)
    if not isinstance(value, (int, float)):
        return None
    low, high = row["intervals"].get(key) or (round(value, 4), round(value, 4))  # sums differ in their last digits
    return value, low, high


def best_of(values: Sequence[tuple[float, float, float] | None], goal: Goal, people: float | None = None) -> list[bool]:
    """Return which values are best: the best one, and those whose interval overlaps with its interval.

    Args:
        values: Each value with the ends of its interval; None for a value that was not measured.
        goal: Which values are good; without a goal no value is marked as best.
        people: Value of people, for that goal.

    Returns:
        One bool per value; all are False if every value's interval overlaps with the interval of the best value.
    """
    if not goal or (goal == PEOPLE and people is None):
        return [False] * len(values)
    worse = [None if value is None else _badness(value, goal, people or 0.0) for value in values]
    known = [bad for bad in worse if bad is not None]
    limit = min(known)[2] if known else 0.0
    best = [bad is not None and bad[1] <= limit for bad in worse]
    return best if sum(best) < len(known) else [False] * len(values)


def _badness(value: tuple[float, float, float], goal: Goal, people: float) -> tuple[float, float, float]:
    """Return a value and the ends of its interval, transformed so that lower is better."""
    middle, low, high = value
    if goal == "low":
        return value
    if goal == "high":
        return -middle, -high, -low
    ends = abs(low - people), abs(high - people)
    return abs(middle - people), 0.0 if low <= people <= high else min(ends), max(ends)


def _cell(column: Column, row: Report) -> Cell:
    """Return a metric with its interval; empty if it was not measured."""
    value = row.get(column.key)
    if column.key == "stop_reasons" and value is not None:
        return Cell(" / ".join(str(count) for count in value.values()), "", value["limit"])
    if column.key == "reference_cost_nats_per_unit" and value is None and row.get("forbidden_references"):
        return Cell(FORBIDS, f"{row['forbidden_references']:.1%}")
    if value is None:
        return Cell("")
    interval = row["intervals"].get(column.key)
    if interval is None:
        return _plain(value, column.places)
    if value == 0:
        return Cell("0", f"(≤ {interval[1]:.{column.places}f})" if interval[1] else "", 0.0)
    spread = f"± {(interval[1] - interval[0]) / 2:.{column.places}f}"
    return Cell(f"{value:.{column.places}f}", spread, value)


def _plain(value: float, places: int) -> Cell:
    rounded = round(value, places) + 0.0  # no minus before a zero
    return Cell(f"{rounded:.{places}f}" if rounded else "0", "", rounded)
