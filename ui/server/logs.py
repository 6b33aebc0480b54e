"""The log: one line an event on stderr, JSON or text; what people say is in it only when the operator asks for it.

Whoever reads the lines may be slow or gone, so a thread of its own writes them, and what does not fit waits no longer
than its queue is long: a log that nobody reads never stops the chat.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import sys
import threading
import time
import traceback
from datetime import UTC, datetime
from hashlib import sha256
from typing import Literal

from chatbot.chat.bot import Reply

LOGGER = logging.getLogger("xianliao.serve")
MOST_WAITING = 1000
LogFormat = Literal["auto", "json", "text"]


def log_event(event: str, level: str = "info", **fields: object) -> None:
    """Writes one line; fields that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    LOGGER.log(getattr(logging, level.upper()), event, extra={"fields": known})


def reply_fields(
    model: str,
    replies: list[Reply],
    first_token_seconds: float | None,
    conversation: str,
    said: str | None = None,
) -> dict:
    """What the log says of the replies of a request.

    Args:
        model: The checkpoint's name.
        replies: As far as they got.
        first_token_seconds: From the request to its first token.
        conversation: What the conversation is known by; only a hash of it is written.
        said: The message that is answered; with it the texts are written too, so pass it only when `log_text` is set.
    """
    fields = {
        "model": model,
        "tokens": sum(len(reply.token_ids) + (reply.stop_reason != "safety") for reply in replies),
        "first_token_seconds": None if first_token_seconds is None else round(first_token_seconds, 4),
        "stop_reason": ",".join(reply.stop_reason for reply in replies) or None,
        "conversation": hashed(conversation),
    }
    if said is not None:
        fields |= {"said": said, "replies": [reply.text for reply in replies]}
    return fields


def hashed(text: str) -> str:
    return sha256(text.encode("utf-8", "replace")).hexdigest()[:12]


class LineFormatter(logging.Formatter):
    """Lines of JSON or text. Of an exception it shows the kind and the places, not the words, which may quote a text."""

    def __init__(self, as_json: bool, with_text: bool = False):
        super().__init__()
        self.as_json, self.with_text = as_json, with_text

    def format(self, record: logging.LogRecord) -> str:
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = record.getMessage()
        if record.exc_info and record.exc_info[1] is not None and not self.with_text:
            event = str(record.msg).splitlines()[0].strip()
        fields = {"time": when, "level": record.levelname.lower(), "event": event, **getattr(record, "fields", {})}
        if record.name != LOGGER.name:
            fields["logger"] = record.name
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            fields["error"] = f"{type(error).__name__}: {error}" if self.with_text else type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)
            fields["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
        if self.as_json:
            return json.dumps(fields, ensure_ascii=False, default=str)
        words = " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("time", "level", "event"))
        line = " ".join(filter(None, (when, fields["level"], event, words)))
        return "".join(character if character.isprintable() else " " for character in line)  # one line, no escapes


class PatientHandler(logging.Handler):
    """Writes to a file descriptor from a thread of its own; lines that find the queue full are dropped and counted."""

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor, self._dropped = descriptor, 0
        self._lines: queue.Queue[bytes] = queue.Queue(MOST_WAITING)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._lines.put_nowait((self.format(record) + "\n").encode("utf-8", "replace"))
        except queue.Full:
            self._dropped += 1

    def finish(self, seconds: float = 0.5) -> None:
        """Waits so long for what is still to be written."""
        until = time.monotonic() + seconds
        while self._lines.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)

    def _write(self) -> None:
        while True:
            line = self._lines.get()
            if self._dropped:
                self._dropped, dropped = 0, self._dropped
                line += json.dumps({"level": "warning", "event": f"{dropped} lines of the log were dropped"}).encode()
                line += b"\n"
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                pass  # nobody reads it any more
            finally:
                self._lines.task_done()


def start_log(chosen: LogFormat = "auto", with_text: bool = False) -> PatientHandler:
    """Sends the server's events, and the warnings of what it is built on, to stderr.

    Args:
        chosen: `auto` is text on a terminal and JSON elsewhere.
        with_text: Whether the words of exceptions are shown.
    """
    handler = PatientHandler(sys.stderr.fileno())
    as_json = chosen == "json" or (chosen == "auto" and not sys.stderr.isatty())
    handler.setFormatter(LineFormatter(as_json, with_text))
    root = logging.getLogger()
    root.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler
