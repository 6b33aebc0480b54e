"""How speed is measured: process CPU time on one thread, sides in turn, medians.

CPU seconds of one thread repeat to a few percent where wall times swing with the machine's other work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: What was done.
        unit: Of both numbers.
        ours, peer: Medians.
        peer_name: Who the peer is.
        ratio: How many times better ours is; above 1 is ahead.
        target: The least ratio wanted, None when there is none.
    """

    what: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    target: float | None = None


def faster(what: str, peer_name: str, ours: float, peer: float, target: float | None = None) -> Row:
    """A row from seconds per token, shown as milliseconds."""
    return Row(what, "ms/token", ours * 1e3, peer * 1e3, peer_name, peer / ours, target)


def more(what: str, peer_name: str, tokens: int, ours: float, peer: float, target: float | None = None) -> Row:
    """A row from seconds for so many tokens, shown as tokens per CPU second."""
    return Row(what, "tokens / CPU s", tokens / ours, tokens / peer, peer_name, peer / ours, target)


def alternate(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median CPU seconds of each, run in turn after a warm-up."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_peak(rounds: int = 7) -> float:
    """FLOP/s of a large fp32 matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / alternate({"matmul": lambda: a @ b}, rounds)["matmul"]


def reading_seconds(weights: int, int8: bool, rounds: int = 15) -> float:
    """CPU seconds to read so many weights once: the floor of a decoding step at batch 1, by a matrix-vector product."""
    columns = 512
    if int8:
        matrix = torch.ones(weights // columns, columns, dtype=torch.int8)
        vector = torch.ones(1, columns, dtype=torch.int8)
        return alternate({"gemv": lambda: torch._int_mm(vector, matrix.t())}, rounds)["gemv"]
    matrix, vector = torch.ones(weights // columns, columns), torch.ones(columns)
    return alternate({"gemv": lambda: matrix @ vector}, rounds)["gemv"]


def to_markdown(rows: list[Row]) -> str:
    """The table; a row that misses its target says so."""
    lines = ["| what | unit | xianliao | peer | | ratio | wanted |", "|---|---|--:|--:|---|--:|--:|"]
    for row in rows:
        wanted = "" if row.target is None else f"≥ {row.target:g}{'' if row.ratio >= row.target else ' ✗'}"
        numbers = f"{_short(row.ours)} | {_short(row.peer)}"
        lines.append(f"| {row.what} | {row.unit} | {numbers} | {row.peer_name} | {row.ratio:.2f} | {wanted} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
