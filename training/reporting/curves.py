"""Plot of the curves of a run."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from chatbot.storage import replacing
from training.reporting.logs import read_metrics

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CURVES = "curves.png"
FEW_POINTS = 40
"""A curve with fewer points than this shows a mark at each point."""


def draw_curves(
    output: Path, unigram: float | None = None, before: float | None = None, tokens_per_unit: float | None = None
) -> None:
    """Write curves.png: loss and validation on one axis in nats/unit, gradient norm and learning rate, over the steps.

    Args:
        output: Folder of the run; its name is the title.
        unigram: nats/unit of a unigram model, drawn as a line beside the validation; None draws no line.
        before: nats/unit of the validation before the first step; None draws no point.
        tokens_per_unit: Tokens per unit of the validation dialogues, to convert the training loss from nats/token to
            nats/unit; None shows nats/token.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator, ScalarFormatter

    entries = read_metrics(output)
    figure = Figure(figsize=(11, 3.6), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(f"{output.name}: {entries[-1]['step'] if entries else 0} steps")
    quality, norm, rate = figure.subplots(1, 3)
    scale = tokens_per_unit or 1.0
    losses = [(entry["step"], entry["loss"] * scale) for entry in entries if "loss" in entry]
    valid = [(entry["step"], entry["valid_nats_per_unit"]) for entry in entries if "valid_nats_per_unit" in entry]
    valid = [(0, before)] * (before is not None) + valid
    unit = "nats/unit" if tokens_per_unit else "training: nats/token; validation: nats/unit"
    _plot(quality, losses, "training")
    _plot(quality, valid, "validation", "o-")
    if unigram is not None:
        quality.axhline(unigram, linestyle=":", color="gray", label="unigram model, validation")
    quality.set(title="quality (lower is better)", ylabel=unit)
    quality.legend()
    _plot(norm, [(entry["step"], entry["gradient_norm"]) for entry in entries if "gradient_norm" in entry])
    norm.set(title="gradient norm before clipping", ylabel="norm (logarithmic)", yscale="log")
    norm.yaxis.set_major_formatter(ScalarFormatter())
    norm.yaxis.set_minor_formatter(ScalarFormatter())
    _plot(rate, [(entry["step"], entry["learning_rate"]) for entry in entries if "learning_rate" in entry])
    rate.set(title="learning rate", ylabel="rate per step")
    last = max((entry["step"] for entry in entries), default=1)
    for axes in (quality, norm, rate):
        axes.set(xlabel="optimizer step", xlim=(0, max(1, last) * 1.02))
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.grid(alpha=0.3)
    with replacing(output / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)


def _plot(axes: Axes, points: list[tuple[int, float]], label: str | None = None, style: str | None = None) -> None:
    style = style or (".-" if len(points) < FEW_POINTS else "-")
    axes.plot(*zip(*points, strict=True) if points else ([], []), style, label=label, markersize=4)
