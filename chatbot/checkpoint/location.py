"""Where the bundled checkpoint lies, in a checkout or installed as package data."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "default"


def locate(checkpoint: str | Path) -> Path:
    """The path of a checkpoint folder; `default` stands for the bundled one."""
    if str(checkpoint) == DEFAULT:
        return Path(__file__).resolve().parents[2] / "checkpoints" / DEFAULT
    return Path(checkpoint)
