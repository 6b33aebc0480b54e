"""What the training view reads from the files of the commands: cleaning report, curves, result of a run."""

from __future__ import annotations

import os
import re
from itertools import chain, zip_longest
from pathlib import Path
from typing import Any

from chatbot.similarity.difference import difference
from chatbot.storage import MAX_EXACT, log_entries, open_regular, parse_json, read_text
from chatbot.text.dialogue import valid_text

MAX_REASONS, MAX_EXAMPLES, MAX_POINTS, MAX_CHARACTERS = 20, 5, 400, 300
MAX_SAMPLES = 16
"""Number of replies of a step that are compared with those before the training."""
MAX_BYTES = 1 << 20
"""Maximum size of a file that is read, and of the end of a log; larger files are not from the commands of the view."""

REASONS_OF = {
    "dropped": "Dialogues dropped",
    "left_out": "Messages left out at reading",
    "dirty_turns": "Turns removed in cleaning",
    "changed_turns": "Turns changed in cleaning",
}
"""Keys of the manifest with counts by reason, and the headings of the tables in the report that explain them."""

Row = dict[str, Any]


def number_of(value: object) -> int | float | None:
    """Return a value if it is a finite number below `MAX_EXACT`, otherwise None."""
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < MAX_EXACT:
        return value
    return None


def sendable(value: Any) -> Any:
    """Return a JSON value with None for the numbers that `number_of` leaves out, and texts without lone surrogates."""
    if isinstance(value, dict):
        return {valid_text(name): sendable(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [sendable(item) for item in value]
    if isinstance(value, str):
        return valid_text(value)
    return number_of(value) if type(value) in (int, float) else value


def _read(file: Path, folder: Path) -> Row:
    """Return the JSON object in a regular file of a folder.

    Raises:
        OSError, ValueError, RecursionError: It cannot be opened, is too large, or is not a JSON object.
    """
    value = parse_json(read_text(file, MAX_BYTES, folder))
    if not isinstance(value, dict):
        raise ValueError("it holds no JSON object")
    return value


def record_of(file: Path, example: Row) -> Row:
    """Return the values of a stored record that have the type of their example; a list holds texts, a number is a count.

    The folder may be from elsewhere, so nothing else is taken from it.
    """

    def is_like(value: object, other: object) -> bool:
        if isinstance(value, list):
            return isinstance(other, list) and all(isinstance(item, str) for item in value)
        return type(value) is type(other) and not (isinstance(value, int) and not 0 <= value < 10**9)

    try:
        record = _read(file, file.parent)
    except (OSError, ValueError, RecursionError):
        return {}
    return {name: value for name, value in record.items() if is_like(value, example.get(name))}


def report_of(folder: Path, preview: str) -> Row | None:
    """Return the cleaning report of a prepared set; None if the set is not complete or its files are damaged.

    Args:
        folder: The prepared set.
        preview: What `xianliao-prepare --preview` printed.

    Returns:
        `counts` of dialogues and of the train and valid splits, `reasons` as (kind, name, count, explanation), `examples` as
        (rule, before, after), and `samples`: turns of dialogues that are learnt.
    """
    try:
        manifest = _read(folder / "manifest.json", folder.parent)
        page = read_text(folder / "report" / "report.md", MAX_BYTES, folder.parent)
        return _report(manifest, read_tables(page)) | {"samples": read_preview(preview)}
    except (OSError, ValueError, RecursionError, KeyError, TypeError, AttributeError):
        return None


def _report(manifest: Row, tables: dict[str, list[list[str]]]) -> Row:
    rows = [row for title in REASONS_OF.values() for row in tables.get(title, [])]
    explanations = {row[0]: row[2] for row in rows if len(row) == 3}
    reasons = [
        (kind, name, count, explanations.get(name, ""))
        for kind in REASONS_OF
        for name, count in sorted(manifest.get(kind, {}).items(), key=lambda entry: -entry[1])
    ]
    splits = manifest["splits"]
    counts = {name: manifest["dialogues"].get(name, 0) for name in ("read", "kept_whole", "split", "dropped")}
    counts |= {name: splits[name]["dialogues"] for name in ("train", "valid")}
    numbers = [*counts.values(), *(count for _, _, count, _ in reasons)]
    if not all(type(number) is int and 0 <= number < MAX_EXACT for number in numbers):
        raise ValueError("a count of the manifest is not a number")
    return {
        "counts": counts,
        "reasons": reasons[:MAX_REASONS],
        "examples": _examples(tables.get("Examples of each rule", [])),
    }


def read_tables(page: str) -> dict[str, list[list[str]]]:
    """Return the rows of the Markdown tables of a report by their heading, without the row of column names."""
    tables: dict[str, list[list[str]]] = {}
    heading = ""
    for line in page.splitlines():
        if line.startswith("#"):
            heading = line.lstrip("# ")
        elif line.startswith("| ") and line.endswith(" |"):
            cells = [cell.strip() for cell in line[2:-2].split(" | ")]
            tables.setdefault(heading, []).append(cells)
    return {name: [row for row in rows[1:] if not set("".join(row)) <= set("-: ")] for name, rows in tables.items()}


def _examples(rows: list[list[str]]) -> list[list[str]]:
    """Return examples of as many rules as possible."""
    by_rule: dict[str, list[list[str]]] = {}
    for rule, before, after in (row for row in rows if len(row) == 3):
        by_rule.setdefault(rule, []).append([rule, *(text.strip("`")[:MAX_CHARACTERS] for text in (before, after))])
    mixed = chain.from_iterable(zip_longest(*by_rule.values()))
    return [row for row in mixed if row is not None][:MAX_EXAMPLES]


def read_preview(text: str) -> list[list[str]]:
    """Return the turns of each dialogue that a preview shows."""
    dialogues: list[list[str]] = []
    for line in text.splitlines():
        if re.match(r"dialogue \d+: ", line):
            dialogues.append([])
        elif dialogues and (turn := re.match(r"  (?:person|bot): (.*)", line)):
            dialogues[-1].append(turn[1][:MAX_CHARACTERS])
    return dialogues


class Log:
    """JSON Lines file of a run that is read as it grows.

    Args:
        file: The file in the folder of a run, which may not exist yet.
    """

    def __init__(self, file: Path):
        self._file, self._at = file, 0

    def read(self) -> tuple[list[Row], bool]:
        """Return the entries that were added, and whether the file became shorter and was read anew: a run that is
        continued drops the entries after its saved state. Only the last `MAX_BYTES` are read."""
        try:
            with open_regular(self._file, self._file.parents[1]) as file:
                size = os.fstat(file.fileno()).st_size
                is_anew = size < self._at
                start = 0 if is_anew else self._at
                is_long = size - start > MAX_BYTES
                start = size - MAX_BYTES if is_long else start
                file.seek(start)
                data = file.read(MAX_BYTES)
        except OSError:
            return [], False
        first = data.find(b"\n") + 1 if is_long else 0
        end = data.rfind(b"\n") + 1  # the last line may be in the middle of being written
        self._at = start + end
        return log_entries(data[first:end]), is_anew


class Series:
    """Points of a curve: at most `MAX_POINTS` at equal intervals of steps, and the last point."""

    def __init__(self) -> None:
        self._points: list[list[float]] = []
        self._every, self._last = 1, list[float]()

    def add(self, step: int, value: float) -> None:
        """Add the value at a step; a step that does not come after the last one is ignored."""
        if self._last and step <= self._last[0]:  # equal steps could not be thinned out
            return
        self._last = [step, value]
        if step % self._every == 0:
            self._points.append(self._last)
        if len(self._points) >= MAX_POINTS:
            self._every *= 2
            self._points = [point for point in self._points if point[0] % self._every == 0]

    @property
    def points(self) -> list[list[float]]:
        """The points, (step, value)."""
        is_kept = not self._last or (bool(self._points) and self._points[-1] is self._last)
        return [*self._points] if is_kept else [*self._points, self._last]


class Curves:
    """Curves of a run while it goes on.

    Args:
        run: Folder of the run.
    """

    def __init__(self, run: Path):
        self._log = Log(run / "metrics.jsonl")
        self._loss, self._valid, self._last = Series(), Series(), Row()

    def read(self) -> Row:
        """Return the points (step, value) of the training loss and of the validation, and the latest speed."""
        entries, is_anew = self._log.read()
        if is_anew:
            self._loss, self._valid = Series(), Series()
        for entry in entries:
            for series, name in ((self._loss, "loss"), (self._valid, "valid_nats_per_unit")):
                if (value := number_of(entry.get(name))) is not None:
                    series.add(entry["step"], value)
            self._last = entry
        speed = number_of(self._last.get("tokens_per_second"))
        return {"loss": self._loss.points, "valid": self._valid.points, "tokens_per_second": speed}


def result_of(run: Path, has_sample: bool = True) -> Row | None:
    """Return what a run has reached; None if it has not saved a checkpoint.

    Args:
        run: Folder of the run.
        has_sample: Whether to read the sample replies, which may be many.

    Returns:
        nats per unit `before` and `best`, `best_step`, the number of `valid` dialogues, and a `sample`, that with the
        largest change: prompt, reply of the checkpoint and reply before the training. Missing values are None.
    """
    if not (run / "model.safetensors").is_file() and not (run / "adapter_model.safetensors").is_file():
        return None
    try:
        record = _read(run / "training.json", run.parent)
    except (OSError, ValueError, RecursionError):
        return None
    replies = Log(run / "samples.jsonl").read()[0] if has_sample else []
    names = {"before": "before", "best": "best", "best_step": "best_step", "valid": "valid_dialogues"}
    numbers = {name: number_of(record.get(key)) for name, key in names.items()}
    step = number_of(record.get("step")) if numbers["best_step"] is None else numbers["best_step"]
    return {**numbers, "sample": _sample(replies, step)}


def _sample(entries: list[Row], step: float | None) -> list[str | None] | None:
    """Return the prompt whose reply the training changed most, the reply at a step, and the reply before the training."""
    whole = [entry for entry in entries if _is_texts(entry.get("prompt")) and isinstance(entry.get("reply"), str)]
    after = [entry for entry in whole if entry["step"] == step][-MAX_SAMPLES:]
    if not after:
        return None
    before = {tuple(entry["prompt"]): entry["reply"] for entry in whole if entry["step"] == 0}
    same = [before.get(tuple(entry["prompt"])) for entry in after]
    changes = [
        0.0 if text is None else difference(text, entry["reply"]) for entry, text in zip(after, same, strict=True)
    ]
    number = changes.index(max(changes))
    return [after[number]["prompt"][-1], after[number]["reply"], same[number]]


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(text, str) for text in value)
