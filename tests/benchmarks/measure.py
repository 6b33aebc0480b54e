"""Measurement of speed: CPU time of the process on one thread, alternating sides, medians.

CPU seconds of one thread repeat to a few percent. Wall times depend on the machine's other work.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Row:
    """Row of the table.

    Attributes:
        task: The measured task.
        unit: Unit of both medians.
        ours, peer: Medians of our side and of the peer.
        peer_name: Name of the peer.
        ratio: Factor by which our side is faster; above 1, our side is ahead.
        target: Smallest ratio wanted, or None.
    """

    task: str
    unit: str
    ours: float
    peer: float
    peer_name: str
    ratio: float
    target: float | None = None


def latency_row(task: str, peer_name: str, ours: float, peer: float, target: float | None = None) -> Row:
    """Return a row from seconds per token, shown as milliseconds."""
    return Row(task, "ms/token", ours * 1e3, peer * 1e3, peer_name, peer / ours, target)


def throughput_row(
    task: str, peer_name: str, tokens: int, ours: float, peer: float, target: float | None = None
) -> Row:
    """Return a row from the seconds for a number of tokens, shown as tokens per CPU second."""
    return Row(task, "tokens / CPU s", tokens / ours, tokens / peer, peer_name, peer / ours, target)


def alternate(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median CPU seconds of each work; all run once per round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for number in range(rounds + 1):
        for name, work in works.items():
            started = time.process_time()
            work()
            if number:
                seconds[name].append(time.process_time() - started)
    return {name: statistics.median(values) for name, values in seconds.items()}


def matmul_peak(rounds: int = 7) -> float:
    """Return the FLOP/s of a large fp32 matrix product."""
    a, b = torch.randn(1024, 1024), torch.randn(1024, 1024)
    return 2 * 1024**3 / alternate({"matmul": lambda: a @ b}, rounds)["matmul"]


def reading_seconds(weights: int, int8: bool, rounds: int = 15) -> float:
    """Return the CPU seconds of a matrix-vector product: the time to read the weights once.

    It is the lower bound of a decoding step at batch size 1.
    """
    columns = 512
    if int8:
        matrix = torch.ones(weights // columns, columns, dtype=torch.int8)
        vector = torch.ones(1, columns, dtype=torch.int8)
        return alternate({"gemv": lambda: torch._int_mm(vector, matrix.t())}, rounds)["gemv"]
    matrix, vector = torch.ones(weights // columns, columns), torch.ones(columns)
    return alternate({"gemv": lambda: matrix @ vector}, rounds)["gemv"]


def to_markdown(rows: list[Row]) -> str:
    """Return the table; a row that misses its target is marked."""
    lines = ["| task | unit | xianliao | peer | | ratio | wanted |", "|---|---|--:|--:|---|--:|--:|"]
    for row in rows:
        wanted = "" if row.target is None else f"≥ {row.target:g}{'' if row.ratio >= row.target else ' ✗'}"
        numbers = f"{_short(row.ours)} | {_short(row.peer)}"
        lines.append(f"| {row.task} | {row.unit} | {numbers} | {row.peer_name} | {row.ratio:.2f} | {wanted} |")
    return "\n".join(lines)


def _short(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
