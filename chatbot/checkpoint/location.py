"""Location of the bundled checkpoint, in a checkout or installed as package data."""

from __future__ import annotations

from pathlib import Path

DEFAULT = "default"


def locate(checkpoint: str | Path) -> Path:
    """Return the path of a checkpoint folder; `default` is the bundled checkpoint."""
    if str(checkpoint) == DEFAULT:
        return Path(__file__).resolve().parents[2] / "checkpoints" / DEFAULT
    return Path(checkpoint)
