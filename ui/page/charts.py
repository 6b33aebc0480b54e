"""Chart and table of how a reply was chosen."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import gradio as gr
import pandas as pd

from chatbot.chat.trace import TracedStep
from ui.page.handlers import escape_markup

LINES = {"line_kept": "probability", "line_end": "end", "line_end_kept": "end_kept", "line_floor": "floor"}
"""Text key of each line, and the attribute of `TracedStep` that it shows."""


def plot_steps(steps: Sequence[TracedStep], texts: Mapping[str, str]) -> tuple[gr.LinePlot, gr.Dataframe]:
    """Return the steps of a reply as a chart of probabilities and a table of candidates.

    Args:
        steps: Steps of the reply.
        texts: Texts of the page in one language.
    """

    def shown(token: str) -> str:
        return escape_markup(token) or texts["end_mark"]

    points = [
        {"step": number, "p": getattr(step, attribute), "line": texts[line]}
        for number, step in enumerate(steps, 1)
        for line, attribute in LINES.items()
    ]
    rows = [
        [shown(step.token), step.count, "  ".join(f"{shown(token)} {share:.2f}" for token, share in step.kept)]
        for step in steps
    ]
    chart = gr.LinePlot(
        pd.DataFrame(points),
        y_lim=[0, 1],
        visible=True,
        x_title=texts["chart_step"],
        y_title=texts["chart_p"],
        color_title=" ",
    )
    headers = [texts[name] for name in ("table_token", "table_count", "table_kept")]
    return chart, gr.Dataframe(rows, headers=headers, visible=True)
