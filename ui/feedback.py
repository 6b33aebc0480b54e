"""Likes and dislikes, one JSON line each, in a file that `xianliao-prepare` reads: disliked replies are left out there."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from chatbot.errors import XianliaoError

REASONS = ("on_topic", "funny", "kind", "off_topic", "repeats", "odd", "rude")
MOST_COMMENT = 1_000
_LOCK = threading.Lock()


class FeedbackError(XianliaoError):
    """Feedback that cannot be written down."""


def write_feedback(
    folder: Path,
    turns: Sequence[str],
    rating: Literal["like", "dislike"],
    model: str,
    reasons: Sequence[str] = (),
    comment: str = "",
    more: Mapping | None = None,
) -> Path:
    """Appends one line: the turns as messages, the last of them the reply that is rated.

    Returns:
        The file, `feedback.jsonl` in the folder.

    Raises:
        FeedbackError: The folder cannot be written to.
    """
    messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    line = {
        "messages": messages,
        "rating": rating,
        "reasons": [reason for reason in reasons if reason in REASONS],
        "comment": comment[:MOST_COMMENT],
        "model": model,
        **(more or {}),
    }
    path = folder / "feedback.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _LOCK, path.open("a", encoding="utf-8", newline="\n") as file:
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
    except OSError as error:
        raise FeedbackError(f"The feedback could not be written to {path} ({error.strerror}).") from None
    return path
