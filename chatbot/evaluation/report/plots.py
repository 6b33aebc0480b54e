"""Plots of the report as SVG text; the same numbers give the same text."""

from __future__ import annotations

import io
import warnings
from collections.abc import Callable, Sequence
from typing import Any

from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, NullFormatter

STYLE: dict[Any, Any] = {
    "svg.hashsalt": "xianliao",
    "svg.fonttype": "none",
    "text.parse_math": False,  # a method may have a dollar sign in its name
    "axes.spines.top": False,
    "axes.spines.right": False,
}
LINES = ("-", "--", ":", "-.")
MARKERS = "osD^"
COLOURS = 10
"""Number of colours in matplotlib's cycle; after them the next line style or marker is used."""

Methods = Sequence[tuple[str, dict[str, Any]]]


def termination_curves(methods: Methods, longest: int) -> str:
    """Plot the share of replies without an end after L tokens, over L.

    Args:
        methods: Name and metrics of each method.
        longest: Largest L.
    """

    def draw(axes: Axes) -> None:
        for number, (name, row) in enumerate(methods):
            count, cut_off = row["replies"], row["stop_reasons"]["limit"]
            lowest = 0.5 / count  # a share of 0 is drawn here, because the axis is logarithmic
            unfinished, points = count, [(1, 1.0)]
            for length, replies in row["tokens"]:
                unfinished -= replies
                points.append((max(1, length + 1), max(max(unfinished, cut_off) / count, lowest)))
            points.append((longest, max(cut_off / count, lowest)))
            lengths, shares = zip(*points, strict=True)
            axes.step(lengths, shares, where="post", label=f" {name}", linestyle=LINES[number // COLOURS % len(LINES)])
        axes.set(xscale="log", yscale="log", xlim=(1, longest), ylim=(0.4 / methods[0][1]["replies"], 1))
        axes.set(xlabel="L, tokens", ylabel="r_L: no end after L tokens (0 is drawn at the bottom)")
        for axis in (axes.xaxis, axes.yaxis):  # matplotlib's own labels of a log axis need math text
            axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
            axis.set_minor_formatter(NullFormatter())

    return _svg(draw)


def length_histograms(methods: Methods, people: dict[str, Any]) -> str:
    """Plot the lengths of the replies in characters, with those of people in the background."""
    longest = _percentile(people["characters"], 0.99) + 10

    def draw(axes: Axes) -> None:
        lengths, shares = _histogram(people, longest)
        axes.fill_between(lengths, shares, step="mid", alpha=0.25, color="gray", label="people")
        for number, (name, row) in enumerate(methods):
            lengths, shares = _histogram(row, longest)
            style = LINES[number // COLOURS % len(LINES)]
            axes.step(lengths, shares, where="mid", label=f" {name}", linestyle=style, linewidth=1.2)
        axes.set(xlim=(0, longest), ylim=(0, None))
        axes.set(xlabel=f"characters (last: {longest} and more)", ylabel="share")

    return _svg(draw)


def quality_and_diversity(methods: Methods, people: dict[str, Any]) -> str | None:
    """Plot likeness to the references over Dist-2; None if likeness or Dist-2 was not measured."""
    key, label = ("wrd", "1 - WRD to the reference") if "wrd" in methods[0][1] else ("bleu_2", "BLEU-2")
    if not all(key in row and "dist_2" in row for _, row in methods):
        return None

    def draw(axes: Axes) -> None:
        for number, (name, row) in enumerate(methods):
            x_error, y_error = (
                [[abs(row[metric] - end)] for end in row["intervals"][metric]] for metric in ("dist_2", key)
            )
            marker = MARKERS[number // COLOURS % len(MARKERS)]
            axes.errorbar(row["dist_2"], row[key], y_error, x_error, fmt=marker, label=f" {name}", markersize=5)
        axes.axvline(people["dist_2"], color="gray", linestyle=":", linewidth=1, label="people's Dist-2")
        axes.set(xlabel="Dist-2, characters", ylabel=label)

    return _svg(draw)


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


def _svg(draw: Callable[[Axes], None]) -> str:
    """Draw a plot and return its <svg> element."""
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        target = io.StringIO()
        with warnings.catch_warnings():  # labels are SVG text, so a Chinese name needs no font here
            warnings.filterwarnings("ignore", message="Glyph")
            FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    return text[text.index("<svg") :]
