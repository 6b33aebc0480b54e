"""Script and style sheet of the page. The script draws the conversation, keeps it in the
browser, and handles the keyboard.

The parts are plain JavaScript, joined in the order of `PARTS`. Each adds its functions to `window.xianliao`; texts of people
become text nodes, never markup.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

PARTS = ("base", "store", "tree", "files", "chat", "actions", "inside", "ball", "side", "keys")
STUDIO = ("studio", "curves")
"""Parts of the training view."""


def page_script(**values: object) -> str:
    """Return the script.

    Args:
        values: Values that the parts read from `xianliao.given`.
    """
    given = json.dumps(values, ensure_ascii=False).replace("<", "\\u003c")
    parts = [
        Path(__file__).with_name(f"{name}.js").read_text(encoding="utf-8")
        for name in PARTS + STUDIO * bool(values.get("studio"))
    ]
    return "\n".join([f"window.xianliao = {{ given: {given} }};", *parts])


def head(values: Mapping[str, object]) -> str:
    """Return the elements for the head of the page: the style sheet, which Gradio would change, and the script."""
    sheets = ("page", "ball", "studio") if values.get("studio") else ("page", "ball")
    style = "\n".join(Path(__file__).with_name(f"{name}.css").read_text(encoding="utf-8") for name in sheets)
    return f"<style>\n{style}</style>\n<script>\n{page_script(**values)}</script>"
