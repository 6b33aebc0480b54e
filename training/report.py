"""metrics.jsonl and curves.png of a run."""

from __future__ import annotations

import json
from pathlib import Path

from chatbot.checkpoint import replacing

METRICS, CURVES = "metrics.jsonl", "curves.png"


class MetricsLog:
    """Appends one JSON object a line; entries after `last_step` of an earlier, stopped run are dropped."""

    def __init__(self, output: Path, last_step: int):
        self.path = output / METRICS
        kept = [entry for entry in read_metrics(output) if entry["step"] <= last_step]
        with replacing(self.path) as temporary:
            temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")

    def add(self, **entry: float) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")


def read_metrics(output: Path) -> list[dict]:
    """Entries of metrics.jsonl; a last line that was cut by a crash is passed over."""
    entries = []
    if (output / METRICS).is_file():
        for line in (output / METRICS).read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                entries.append(entry)
    return entries


def draw_curves(output: Path) -> None:
    """Loss, validation, learning rate and gradient norm over the steps, as curves.png."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_metrics(output)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    plots = (
        ("training loss", "nats/token", "loss", False),
        ("validation", "nats/unit", "valid_nats_per_unit", False),
        ("gradient norm before clipping", "", "gradient_norm", True),
        ("learning rate", "", "learning_rate", False),
    )
    for axes, (title, unit, key, logarithmic) in zip(figure.subplots(1, len(plots)), plots, strict=True):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="step", ylabel=unit)
        if logarithmic and points:
            axes.set_yscale("log")
    with replacing(output / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
