"""The log: one line per event on stderr, JSON or text. Messages and replies are logged only if the operator asks for it.

A background thread writes the lines from a bounded queue. When the reader of stderr is slow and the queue is full,
lines are dropped, so the log never delays a reply.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import secrets
import sys
import threading
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from typing import Any, Literal

from chatbot.chat.bot import Reply
from ui.options import is_json_log
from ui.server.work import SENDER

LOGGER = logging.getLogger("xianliao.serve")
MAX_WAITING_LINES = 1000
EQUAL_LINES_PER_MINUTE, MAX_COUNTED_LINES = 10, 10_000
LogFormat = Literal["auto", "json", "text"]
_SALT = secrets.token_bytes(16)


def log_event(event: str, level: str = "info", failure: BaseException | None = None, **fields: object) -> None:
    """Write one line, with the class and the stack of a failure; fields that are None are left out."""
    known = {name: value for name, value in fields.items() if value is not None}
    LOGGER.log(getattr(logging, level.upper()), event, exc_info=failure, extra={"fields": known})


def reply_fields(
    model: str,
    replies: list[Reply],
    first_token_seconds: float | None,
    conversation: str,
    message: str | None = None,
) -> dict[str, Any]:
    """Return the fields of a log line about the replies to one request.

    Args:
        model: Name of the checkpoint.
        replies: Replies, complete or not.
        first_token_seconds: Seconds from the request to its first token.
        conversation: Identity of the conversation; only a salted hash is logged.
        message: Message that is answered. If given, the message and the replies are logged; use only with `log_text`.
    """
    fields: dict[str, Any] = {
        "model": model,
        "tokens": sum(reply.generated_tokens for reply in replies),
        "first_token_seconds": None if first_token_seconds is None else round(first_token_seconds, 4),
        "stop_reason": ",".join(reply.stop_reason for reply in replies) or None,
        "conversation": salted_hash(conversation),
    }
    if message is not None:
        fields |= {"message": message, "replies": [reply.text for reply in replies]}
    return fields


def salted_hash(text: str) -> str:
    """Return a hash that is the same within this process only, so that common first messages cannot be recognized."""
    return sha256(_SALT + text.encode("utf-8", "replace")).hexdigest()[:12]


class EqualLines:
    """Throttle of the equal lines that one client causes: the first few of a minute are written, then how many followed.

    Args:
        per_minute: Lines that are written.
        clock: Function that returns seconds.
    """

    def __init__(self, per_minute: int = EQUAL_LINES_PER_MINUTE, clock: Callable[[], float] = time.monotonic):
        self.per_minute, self._clock, self._lock = per_minute, clock, threading.Lock()
        self._counts: OrderedDict[tuple, list[float]] = OrderedDict()  # (client, line) -> [end of its minute, count]

    def log(
        self, client: str, event: str, level: str = "info", failure: BaseException | None = None, **fields: object
    ) -> None:
        """Write a line, unless this client has caused too many equal ones.

        Args:
            client: Address of the client. It is not written.
            event: Event of the line.
            level: Level of the line.
            failure: Exception whose class and stack are written. Equal lines have exceptions of the same class.
            fields: Fields of the line. Equal lines have equal fields, except for `seconds`.
        """
        if failure is not None:
            fields["error"] = type(failure).__name__
        if self.counts(client, event, level, **fields):
            log_event(event, level, failure, **fields)

    def counts(self, client: str, event: str, level: str, **fields: object) -> bool:
        """Count a line. Return whether to write it: only the first lines of a minute are written."""
        now = self._clock()
        line = (event, level, *sorted((name, str(value)) for name, value in fields.items() if name != "seconds"))
        with self._lock:
            self._report(now)
            counted = self._counts.setdefault((client, line), [now + 60, 0])
            counted[1] += 1
            if len(self._counts) > MAX_COUNTED_LINES:
                self._report(now, at_least=1)
            return counted[1] <= self.per_minute

    def _report(self, now: float, at_least: int = 0) -> None:
        """Forget the lines whose minute is over, and in any case the oldest `at_least`; write how many were left out."""
        while self._counts:
            key, (ends, count) = next(iter(self._counts.items()))
            _, (event, level, *fields) = key
            if ends > now and at_least <= 0:
                return
            del self._counts[key]
            at_least -= 1
            if count > self.per_minute:
                log_event(event, level, **dict(fields), equal_lines=int(count) - self.per_minute)

    def finish(self) -> None:
        """Write how many lines were left out until now."""
        with self._lock:
            self._report(0.0, at_least=len(self._counts))


FAILURES = EqualLines()
"""Throttle of the lines about failed events of the page, failed replies of the API and other exceptions, of all servers of
this process."""


def is_written(record: logging.LogRecord) -> bool:
    """Whether a line is written; of the equal lines of libraries that one client causes, only ten per minute are.

    For example, uvicorn writes a line with the stack for each request whose exception no route has handled.
    """
    if record.name == LOGGER.name:
        return True
    event = _template(record)
    fields = {"logger": record.name}
    if record.exc_info and record.exc_info[0]:
        fields["error"] = record.exc_info[0].__name__
    return FAILURES.counts(SENDER.get(), event, record.levelname.lower(), **fields)


def _template(record: logging.LogRecord) -> str:
    """Return the first line of a record's text without its values, which may quote a user."""
    if record.name == "py.warnings":
        return warning_place(record.getMessage())
    return next(iter(str(record.msg).splitlines()), "").strip()


class LineFormatter(logging.Formatter):
    """Formats records as lines of JSON or text.

    For an exception the line has the class and the stack, not the message, which may quote a user.

    Args:
        as_json: Whether lines are JSON.
        with_text: Whether messages of exceptions and warnings are shown.
    """

    def __init__(self, as_json: bool, with_text: bool = False):
        super().__init__()
        self.as_json, self.with_text = as_json, with_text

    def format(self, record: logging.LogRecord) -> str:
        """Return the log line of a record."""
        when = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        event = record.getMessage()
        error = record.exc_info[1] if record.exc_info else None
        if (error is not None or record.name == "py.warnings") and not self.with_text:
            event = _template(record)
        fields = {"time": when, "level": record.levelname.lower(), "event": event, **getattr(record, "fields", {})}
        if record.name != LOGGER.name:
            fields["logger"] = record.name
        if error is not None:
            fields["error"] = f"{type(error).__name__}: {error}" if self.with_text else type(error).__name__
            frames = traceback.extract_tb(error.__traceback__)
            fields["where"] = [f"{frame.filename}:{frame.lineno} {frame.name}" for frame in frames[-12:]]
        if self.as_json:
            return _escaped(json.dumps(fields, ensure_ascii=False, default=str))
        words = " ".join(f"{name}={value}" for name, value in fields.items() if name not in ("time", "level", "event"))
        line = " ".join(filter(None, (when, fields["level"], event, words)))
        return "".join(character if character.isprintable() else " " for character in line)  # one line, no escapes


def _escaped(line: str) -> str:
    """Return a line of JSON with escapes for controls, line separators and marks that change the direction of writing."""
    return line if line.isprintable() else "".join(c if c.isprintable() else json.dumps(c)[1:-1] for c in line)


def warning_place(text: str) -> str:
    """Return `file:line: Category` of a formatted Python warning; the rest may quote a user."""
    first = text.splitlines()[0] if text else ""
    return ": ".join(first.split(": ", 2)[:2])


class BackgroundHandler(logging.Handler):
    """Writes lines to a file descriptor in a background thread; lines that find the queue full are dropped and counted.

    Args:
        descriptor: Open file descriptor.
    """

    def __init__(self, descriptor: int):
        super().__init__()
        self._descriptor, self._dropped = descriptor, 0
        self._lines: queue.Queue[bytes] = queue.Queue(MAX_WAITING_LINES)
        threading.Thread(target=self._write, name="log", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the line of a record."""
        try:
            self._lines.put_nowait((self.format(record) + "\n").encode("utf-8", "replace"))
        except queue.Full:
            self._dropped += 1

    def finish(self, seconds: float = 0.5) -> None:
        """Wait up to `seconds` until all queued lines are written."""
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
                pass  # the reader has closed stderr
            finally:
                self._lines.task_done()


def start_log(log_format: LogFormat = "auto", with_text: bool = False) -> BackgroundHandler:
    """Write the server's events, and the warnings of its libraries, to stderr.

    Args:
        log_format: `auto` is text on a terminal and JSON elsewhere.
        with_text: Whether messages of exceptions and warnings are shown.
    """
    handler = BackgroundHandler(sys.stderr.fileno())
    handler.addFilter(is_written)
    handler.setFormatter(LineFormatter(is_json_log(log_format), with_text))
    root = logging.getLogger()
    root.addHandler(handler)
    LOGGER.setLevel(logging.INFO)
    logging.captureWarnings(True)
    return handler
