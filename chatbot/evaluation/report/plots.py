"""The report's plots, as SVG text that is the same for the same numbers."""

from __future__ import annotations

import io
import warnings
from collections.abc import Sequence

from matplotlib import rc_context
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure

STYLE = {
    "svg.hashsalt": "xianliao",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
SERIES = ("-", "--", ":", "-.")


def termination_curves(methods: Sequence[tuple[str, dict]], longest: int) -> str:
    """Share of replies without an end after L tokens, over L."""

    def draw(axes):
        for number, (name, row) in enumerate(methods):
            left, cut = row["replies"], row["stop_reasons"]["limit"]
            least = 0.5 / row["replies"]  # where a share of none is drawn
            points = [(1, 1.0)]
            for length, count in row["tokens"]:
                left -= count
                points.append((max(1, length + 1), max(max(left, cut) / row["replies"], least)))
            points.append((longest, max(cut / row["replies"], least)))
            axes.step(*zip(*points, strict=True), where="post", label=f" {name}", linestyle=SERIES[number // 10 % 4])
        axes.set(xscale="log", yscale="log", xlim=(1, longest), ylim=(0.4 / methods[0][1]["replies"], 1))
        axes.set(xlabel="L, tokens", ylabel="r_L: no end after L tokens (none at the bottom)")

    return _svg(draw)


def length_histograms(methods: Sequence[tuple[str, dict]], people: dict) -> str:
    """Characters of the replies, over the people's."""
    most = _percentile(people["characters"], 0.99) + 10

    def draw(axes):
        lengths, shares = _histogram(people, most)
        axes.fill_between(lengths, shares, step="mid", alpha=0.25, color="gray", label="people")
        for number, (name, row) in enumerate(methods):
            lengths, shares = _histogram(row, most)
            axes.step(lengths, shares, where="mid", label=f" {name}", linestyle=SERIES[number // 10 % 4], linewidth=1.2)
        axes.set(xlim=(0, most), ylim=(0, None), xlabel=f"characters ({most} and more together)", ylabel="share")

    return _svg(draw)


def quality_and_diversity(methods: Sequence[tuple[str, dict]], people: dict) -> str | None:
    """Likeness to what people answered against Dist-2; None where one of them was not measured."""
    key, label = ("wrd", "1 - WRD to the reference") if "wrd" in methods[0][1] else ("bleu_2", "BLEU-2")
    if not all(key in row and "dist_2" in row for _, row in methods):
        return None

    def draw(axes):
        for number, (name, row) in enumerate(methods):
            spread = [[abs(row[each] - end) for end in row["intervals"][each]] for each in ("dist_2", key)]
            bars = {"xerr": [[value] for value in spread[0]], "yerr": [[value] for value in spread[1]]}
            axes.errorbar(row["dist_2"], row[key], **bars, fmt="osD^"[number // 10 % 4], label=f" {name}", markersize=5)
        axes.axvline(people["dist_2"], color="gray", linestyle=":", linewidth=1, label="people's Dist-2")
        axes.set(xlabel="Dist-2, characters", ylabel=label)

    return _svg(draw)


def _histogram(row: dict, most: int) -> tuple[list[int], list[float]]:
    shares = [0.0] * (most + 1)
    for length, count in row["characters"]:
        shares[min(length, most)] += count / row["replies"]
    return list(range(most + 1)), shares


def _percentile(histogram: Sequence[Sequence[int]], share: float) -> int:
    total, seen = sum(count for _, count in histogram), 0
    for length, count in histogram:
        seen += count
        if seen >= share * total:
            return length
    return 0


def _svg(draw) -> str:
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.0), layout="constrained")
        axes = figure.add_subplot()
        draw(axes)
        axes.legend(fontsize=7, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
        target = io.StringIO()
        with warnings.catch_warnings():  # a Chinese name is text in the page, whatever fonts there are here
            warnings.filterwarnings("ignore", message="Glyph")
            FigureCanvasSVG(figure).print_svg(target, metadata={"Date": None, "Creator": None})
    text = target.getvalue()
    return text[text.index("<svg") :]
