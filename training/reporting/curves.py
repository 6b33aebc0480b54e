"""Plot of the curves of a run."""

from __future__ import annotations

from pathlib import Path

from chatbot.storage import replacing
from training.reporting.logs import read_metrics

CURVES = "curves.png"


def draw_curves(output: Path, unigram: float | None = None) -> None:
    """Write curves.png: loss, validation, gradient norm and learning rate over the steps.

    Args:
        output: Folder of the run.
        unigram: nats/unit of a unigram model, drawn as a line in the validation plot; None draws no line.
    """
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
        if key == "valid_nats_per_unit" and unigram is not None:
            axes.axhline(unigram, linestyle=":", color="gray")
            axes.annotate("unigram", (0, unigram), color="gray", va="bottom")
    with replacing(output / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
