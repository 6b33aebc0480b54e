"""Likes and dislikes, one JSON line a reply, in a file that `xianliao-prepare` reads: disliked replies are left out there.

Who rates a reply again changes its line.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

from chatbot.errors import XianliaoError

REASONS = ("on_topic", "funny", "kind", "off_topic", "repeats", "odd", "rude")
MOST_COMMENT = 1_000
MOST_TURNS = 50
_LOCK = threading.Lock()


class FeedbackError(XianliaoError):
    """Feedback that cannot be written down."""


def write_feedback(
    folder: Path,
    turns: Sequence[str],
    rating: Literal["like", "dislike"],
    reasons: Sequence[str] = (),
    comment: str = "",
    made: Mapping | None = None,
) -> Path:
    """Writes one line: the last turns as messages, the last of them the reply that is rated; a line about it goes.

    Args:
        folder: Is made.
        turns: The person's first.
        rating: Of the last of them.
        reasons: Some of `REASONS`.
        comment: In the person's words.
        made: How the reply was made, say its seed.

    Returns:
        The file, `feedback.jsonl` in the folder; only its owner may read it.

    Raises:
        FeedbackError: The rating is none, or the folder cannot be written to.
    """
    if rating not in ("like", "dislike"):
        raise FeedbackError("A rating is like or dislike.")
    turns = turns[-MOST_TURNS:]
    messages = [{"role": ("user", "assistant")[place % 2], "content": turn} for place, turn in enumerate(turns)]
    known = [reason for reason in reasons if reason in REASONS]
    line = {"messages": messages, "rating": rating, "reasons": known, "comment": comment[:MOST_COMMENT], **(made or {})}
    path = folder / "feedback.jsonl"
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with _LOCK:
            _replace(
                path, json.dumps({"messages": messages}, ensure_ascii=False)[:-1], json.dumps(line, ensure_ascii=False)
            )
    except OSError as error:
        raise FeedbackError(f"The feedback could not be written to {path} ({error.strerror}).") from None
    return path


def _replace(path: Path, beginning: str, line: str) -> None:
    """Appends a line, in place of one that begins like it."""
    lines = path.read_text(encoding="utf-8").split("\n")[:-1] if path.exists() else []
    if any(each.startswith(beginning) for each in lines):
        draft = path.with_suffix(".tmp")
        with open(draft, "w", encoding="utf-8", newline="\n", opener=_private) as file:
            file.writelines(each + "\n" for each in lines if not each.startswith(beginning))
        draft.replace(path)
    with open(path, "a", encoding="utf-8", newline="\n", opener=_private) as file:
        file.write(line + "\n")


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
