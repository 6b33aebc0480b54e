"""Plots of the report as SVG text in the colour of the page's text; the same numbers give the same text."""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from chatbot.evaluation.report.words import attribute, label_in_both

INK = "#010203"
"""Placeholder colour that is replaced by the colour of the page's text, in light and in dark mode."""
STYLE: dict[Any, Any] = {
    "svg.hashsalt": "xianliao",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a method may have a dollar sign in its name
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.facecolor": "none",
    "figure.facecolor": "none",
    "font.family": "sans-serif",
    **dict.fromkeys(("text.color", "axes.edgecolor", "axes.labelcolor", "xtick.color", "ytick.color"), INK),
}
COLOURS = ("#3b82f6", "#e0762f", "#16a37b", "#b565d9", "#d64562", "#8a8f3c")
"""Colour of each checkpoint, readable on white and on black; the colours repeat after the last one."""
GREY = "#8a929b"
PANEL_INCHES = (2.4, 1.6)
DIST_2 = "Dist-2, characters"

Methods = Sequence[tuple[str, dict[str, Any]]]


def termination_curves(methods: Methods, longest: int) -> list[tuple[str, str]]:
    """Plot the share of replies without an end after L tokens over L, in one panel for each method.

    Args:
        methods: Name and metrics of each method.
        longest: Largest L.

    Returns:
        Name and plot of each method.
    """
    curves = [_unfinished(row, longest) for _, row in methods]
    lengths = sorted({length for curve in curves for length, _ in curve})
    table = [[_at(curve, length) for length in lengths] for curve in curves]
    low, high = ([pick(column) for column in zip(*table, strict=True)] for pick in (min, max))
    bottom = 0.4 / max(row["replies"] for _, row in methods)

    def draw(axes: Axes, number: int) -> None:
        axes.fill_between(lengths, low, high, step="post", color=GREY, alpha=0.25, linewidth=0)
        axes.step(*zip(*curves[number], strict=True), where="post", color=COLOURS[0], linewidth=1.8)
        axes.set(xscale="log", yscale="log", xlim=(1, longest), ylim=(bottom, 1.15))
        for axis, ticks in ((axes.xaxis, (1, 10, 100, 1000)), (axes.yaxis, (1, 0.1, 0.01, 0.001))):
            axis.set_major_locator(FixedLocator([tick for tick in ticks if bottom <= tick <= longest]))
            axis.set_minor_locator(NullLocator())
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))  # without math text

    return [
        (name, _svg(partial(draw, number=number), f"{name}: replies without an end"))
        for number, (name, _) in enumerate(methods)
    ]


def _unfinished(row: dict[str, Any], longest: int) -> list[tuple[int, float]]:
    """Return (L, share of replies without an end after L tokens) where the share changes, at least half a reply."""
    count, cut_off = row["replies"], row["stop_reasons"]["limit"]
    lowest = 0.5 / count  # the axis is logarithmic
    unfinished, points = count, [(1, 1.0)]
    for length, replies in row["tokens"]:
        unfinished -= replies
        points.append((max(1, length + 1), max(max(unfinished, cut_off) / count, lowest)))
    return [*points, (longest, max(cut_off / count, lowest))]


def _at(curve: list[tuple[int, float]], length: int) -> float:
    """Return the value of a step curve."""
    return [share for start, share in curve if start <= length][-1]


def length_histograms(methods: Methods, people: dict[str, Any]) -> list[tuple[str, str]]:
    """Plot the lengths of the replies in characters, with those of people in the background; see `termination_curves`."""
    longest = _percentile(people["characters"], 0.99) + 10
    background = _histogram(people, longest)
    top = 1.05 * max(max(_histogram(row, longest)[1]) for row in (people, *(row for _, row in methods)))

    def draw(axes: Axes, row: dict[str, Any]) -> None:
        axes.fill_between(*background, step="mid", alpha=0.3, color=GREY, linewidth=0)
        axes.step(*_histogram(row, longest), where="mid", color=COLOURS[0], linewidth=1.6)
        axes.set(xlim=(0, longest), ylim=(0, top))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.yaxis.set_major_locator(MaxNLocator(3))

    return [(name, _svg(partial(draw, row=row), f"{name}: lengths of the replies")) for name, row in methods]


def quality_and_diversity(methods: Methods, people: dict[str, Any], checkpoints: int = 1) -> str | None:
    """Plot likeness to the references and Dist-2 of each method, in two panels; None if one was not measured.

    Args:
        methods: Name and metrics of each method; every checkpoint has the same number of them.
        people: Metrics of the references.
        checkpoints: Number of checkpoints.
    """
    key, label = ("wrd", "1 - WRD to the reply of a person") if "wrd" in methods[0][1] else ("bleu_2", "BLEU-2")
    if not all(key in row and "dist_2" in row for _, row in methods):
        return None
    places = list(range(len(methods), 0, -1))
    colours = [COLOURS[number * checkpoints // len(methods) % len(COLOURS)] for number in range(len(methods))]

    def draw(left: Axes, right: Axes) -> None:
        for axes, metric, heading in ((left, key, label), (right, "dist_2", DIST_2)):
            for height, colour, (_, row) in zip(places, colours, methods, strict=True):
                error = [[abs(row[metric] - end)] for end in row["intervals"][metric]]
                axes.errorbar(row[metric], height, xerr=error, fmt="o", markersize=4, color=colour, capsize=2)
            axes.set(xlabel=heading, ylim=(0.4, len(methods) + 0.6))
            axes.xaxis.set_major_locator(MaxNLocator(5))
        left.set_yticks(places, [name for name, _ in methods])
        right.set_yticks(places, [""] * len(methods))
        right.axvline(people["dist_2"], color=GREY, linestyle=":")

    with rc_context(STYLE):
        figure = Figure(figsize=(8.4, 0.8 + 0.24 * len(methods)), layout="constrained")
        draw(*figure.subplots(1, 2))
        svg = _text_of(figure, "likeness and diversity of each method")
        return label_in_both(label_in_both(svg, label), DIST_2)


def _histogram(row: dict[str, Any], longest: int) -> tuple[list[int], list[float]]:
    """Return lengths from 0 to `longest` and their shares; longer replies count as `longest`."""
    shares = [0.0] * (longest + 1)
    for length, count in row["characters"]:
        shares[min(length, longest)] += count / row["replies"]
    return list(range(longest + 1)), shares


def _percentile(histogram: Sequence[Sequence[int]], share: float) -> int:
    """Return the smallest length that is not exceeded by `share` of the replies."""
    total, seen = sum(count for _, count in histogram), 0
    for length, count in histogram:
        seen += count
        if seen >= share * total:
            return length
    return 0


def _svg(draw: Callable[[Axes], None], label: str) -> str:
    """Draw a small plot and return its <svg> element."""
    with rc_context({**STYLE, "font.size": 8}):
        figure = Figure(figsize=PANEL_INCHES, layout="constrained")
        draw(figure.add_subplot())
        return _text_of(figure, label)


def _text_of(figure: Figure, label: str) -> str:
    """Return a figure as an <svg> element with a name for screen readers."""
    target = io.StringIO()
    with warnings.catch_warnings():  # labels are SVG text, so a Chinese name needs no font here
        warnings.filterwarnings("ignore", message="Glyph")
        FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    text = text[text.index("<svg") :].replace(INK, "currentColor")
    text = re.sub(r' id="[a-zA-Z0-9]+_\d+"', "", text)  # nothing refers to these
    return text.replace("<svg ", f'<svg role="img" {attribute("aria-label", label)} ', 1)
