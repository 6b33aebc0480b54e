"""Export to one HTML file: the C runtime as WebAssembly, the weights file, and a chat page that needs no network."""

from __future__ import annotations

import base64
import hashlib
import os
import tempfile
from pathlib import Path
from typing import Literal

from chatbot.checkpoint.export.lite import lite_bytes
from chatbot.native.building import build_with_zig
from chatbot.safety import Safety, default_safety

PAGE = Path(__file__).with_name("page")


def export_html(
    bot_folder: str | Path, path: str | Path, safety: Safety | Literal["default"] | None = "default"
) -> None:
    """Write the page of a checkpoint. The file is the same for the same checkpoint and the same versions of Python,
    OpenCC and zig.

    Args:
        bot_folder: Checkpoint folder.
        path: File to write.
        safety: Rules for people in crisis that go into the page; None leaves them out, `default` takes the package's.

    Raises:
        CheckpointError: The checkpoint uses a feature that the C runtime does not support.
        BuildError: The runtime cannot be built; see `chatbot.native.building.zig`.
    """
    weights = lite_bytes(Path(bot_folder), default_safety() if safety == "default" else safety)
    with tempfile.TemporaryDirectory() as folder:
        built = Path(folder) / "runtime.wasm"
        build_with_zig("wasm", built)
        content = page_of(weights, built.read_bytes())
    path = Path(path)
    temporary = path.with_name(path.name + ".part")
    temporary.write_text(content, encoding="utf-8")
    os.replace(temporary, path)


def page_of(weights: bytes, wasm: bytes) -> str:
    """Return the page with a weights file and the runtime inside."""
    parts = {name: (PAGE / f"{file}").read_text(encoding="utf-8") for name, file in _FILES.items()}
    style, script = parts["style"], parts["script"]
    values = {
        **{"style": style, "script": script, "worker": parts["worker"]},
        **{"style_hash": _hash(style), "script_hash": _hash(script)},
        **{"wasm": base64.b64encode(wasm).decode(), "weights": base64.b64encode(weights).decode()},
    }
    page = parts["page"]
    for name, value in values.items():
        before, after = page.split("{" + name + "}")
        page = before + value + after
    return page


_FILES = {"page": "page.html", "style": "page.css", "script": "page.js", "worker": "worker.js"}


def _hash(text: str) -> str:
    """Return the hash by which a Content Security Policy allows an inline script or style."""
    return f"sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}"
