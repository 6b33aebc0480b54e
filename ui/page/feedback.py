"""Likes and dislikes: a JSONL file with one line per rated reply.

`xianliao-prepare` reads the file; it leaves out disliked replies. A second rating of a reply replaces the first one.
"""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from hashlib import sha256
from pathlib import Path
from typing import Literal

from chatbot.errors import XianliaoError
from chatbot.storage import replacing
from chatbot.text.dialogue import valid_text
from ui.page.chats import Chat, ChatError, turns_of
from ui.page.signature import is_signed, turns_of_this_process

LIKE_REASONS = ("on_topic", "funny", "kind")
DISLIKE_REASONS = ("off_topic", "repeats", "odd", "rude")
REASONS = (*LIKE_REASONS, *DISLIKE_REASONS)
MAX_COMMENT_CHARACTERS = 1_000
MAX_TURNS = 50
MAX_LINE_BYTES = 64 * 1024
MAX_FILE_BYTES = 50 * 10**6
COPY_BYTES = 2**20

Rating = Literal["like", "dislike"]


def reasons_of(rating: Rating) -> tuple[str, ...]:
    """Return the reasons that fit a rating."""
    return LIKE_REASONS if rating == "like" else DISLIKE_REASONS


def rated_turns(chat: Chat, index: int, text: str | None = None) -> list[str]:
    """Return the turns to record with a rating: those up to the rated reply, as far back as this process made every reply.

    Args:
        chat: The conversation.
        index: Index of the reply among the messages.
        text: Text that the reply must still have.

    Raises:
        ChatError: The message is not a complete reply of this server, or the conversation was changed since.
    """
    message = chat["messages"][index] if 0 <= index < len(chat["messages"]) else None
    if message is None or "seed" not in message or text not in (None, message["text"]):
        raise ChatError("not_rateable")
    turns = turns_of({**chat, "messages": chat["messages"][: index + 1]})
    if not is_signed(turns, message):
        raise ChatError("not_signed")
    return turns_of_this_process(chat, index, MAX_TURNS)


class FeedbackError(XianliaoError):
    """Feedback that cannot be recorded."""


class Feedback:
    """The file `feedback.jsonl` of a folder. Only its owner may read it.

    The positions of the lines are kept in memory, so a new rating is one append. For a changed rating, a copy of the
    file without the old line replaces the file in one step. If another process has changed the file, all lines are
    read again. Still, give every replica its own folder, because two processes that write at once can lose a line.

    Args:
        folder: Folder of the file; it is created with the first rating.
    """

    def __init__(self, folder: Path):
        self.path = folder / "feedback.jsonl"
        self._lock = threading.Lock()
        self._lines: dict[bytes, tuple[int, int]] = {}  # hash of the messages -> offset and length of the line
        self._state: tuple[int, int, int] | None = None  # of the file after the last write

    def write(
        self,
        turns: Sequence[str],
        rating: Rating,
        reasons: Sequence[str] = (),
        comment: str = "",
        generation: Mapping[str, object] | None = None,
    ) -> None:
        """Record a rating: the last turns as messages, ending with the reply that is rated.

        Args:
            turns: History and reply, the user's turn first.
            rating: Rating of the reply.
            reasons: Some of `REASONS`; others are dropped.
            comment: Comment of the user.
            generation: Model, seed and settings of the reply.

        Raises:
            FeedbackError: The rating is invalid or too large, the file is full, or it cannot be written.
        """
        if rating not in ("like", "dislike"):
            raise FeedbackError("A rating is like or dislike.")
        known = [reason for reason in REASONS if reason in reasons]
        details = {"rating": rating, "reasons": known, "comment": valid_text(comment[:MAX_COMMENT_CHARACTERS])}
        messages, line = _line_of(turns, {**details, **(generation or {})})
        key = _key_of(messages)
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            with self._lock:
                self._refresh()
                self._put(key, line)
                self._state = self._stat()
        except OSError as error:
            raise FeedbackError(f"The feedback could not be written to {self.path}: {error.strerror}.") from None

    def _put(self, key: bytes, line: bytes) -> None:
        size = self._state[0] if self._state else 0
        old = self._lines.get(key)
        if size - (old[1] if old else 0) + len(line) > MAX_FILE_BYTES:
            raise FeedbackError(f"The feedback file is full ({MAX_FILE_BYTES // 10**6} MB). Move {self.path} away.")
        if old is not None:
            self._remove(*old)
            size -= old[1]
        with open(self.path, "ab", opener=_private) as file:
            file.write(line)
        self._lines[key] = (size, len(line))

    def _remove(self, offset: int, length: int) -> None:
        """Replace the file by a copy without the `length` bytes at `offset`."""
        with (
            replacing(self.path, mode=0o600) as temporary,
            open(self.path, "rb") as source,
            open(temporary, "wb") as target,
        ):
            while part := source.read(min(COPY_BYTES, offset - target.tell())):
                target.write(part)
            source.seek(offset + length)
            shutil.copyfileobj(source, target)
        self._lines = {
            key: (start - length if start > offset else start, size)
            for key, (start, size) in self._lines.items()
            if start != offset
        }

    def _refresh(self) -> None:
        """Read the positions of the lines if the file is not as this object left it."""
        state = self._stat()
        if state == self._state:
            return
        self._lines, end = {}, 0
        for offset, raw in self._read() if state is not None else ():
            self._lines[_key_of(_messages_of(raw))] = (offset, len(raw))
            end = offset + len(raw)
        if state is not None and end < state[0]:  # a line without its end: the process died while it was written
            self._remove(end, state[0] - end)
        self._state = self._stat()

    def _read(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, line) of every complete line."""
        offset = 0
        with open(self.path, "rb") as file:
            for raw in file:
                if raw.endswith(b"\n"):
                    yield offset, raw
                offset += len(raw)

    def _stat(self) -> tuple[int, int, int] | None:
        try:
            stat = self.path.stat()
        except FileNotFoundError:
            return None
        return stat.st_size, stat.st_mtime_ns, stat.st_ino


def _line_of(turns: Sequence[str], details: Mapping[str, object]) -> tuple[object, bytes]:
    """Return a rating's messages and its JSON line for the feedback file, with as many of the last turns as fit into
    it.

    Raises:
        FeedbackError: The last message and its reply alone do not fit.
    """
    turns = turns[-MAX_TURNS:]
    while True:
        messages = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(turns)]
        line = json.dumps({"messages": messages, **details}, ensure_ascii=False).encode() + b"\n"
        if len(line) <= MAX_LINE_BYTES:
            return messages, line
        if len(turns) <= 2:
            raise FeedbackError(f"The rated reply and its message have more than {MAX_LINE_BYTES // 1024} KiB.")
        turns = turns[2:]


def _messages_of(line: bytes) -> object:
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return value.get("messages") if isinstance(value, dict) else None


def _key_of(messages: object) -> bytes:
    return sha256(json.dumps(messages, ensure_ascii=False).encode("utf-8", "replace")).digest()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)
