"""A command that runs as a process with low priority, and what it says."""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

NICENESS = 10
"""Priority of a command, below that of the chat, unless the server itself has a lower one."""

MAX_MESSAGES, MAX_LINE_BYTES, MAX_OUTPUT_CHARACTERS = 100, 2_000, 200_000
CLOSE_SECONDS = 5.0
"""Time that a command has to save and end when the server ends."""

_PROGRESS = re.compile(r"^(?P<name>.*?):\s+\d+%\|.*?\| (?P<done>\d+)/(?P<total>\d+) \[[^<\]]*<(?P<left>[\d:]+),.*\]$")
_BYTES = re.compile(r"^(?P<name>.*?):\s+(?P<percent>\d+)%\|.*?\| [^\[]*\[[^<\]]*<(?P<left>[\d:?]+),.*B/s.*\]$")
"""A bar that counts the bytes of files, whose numbers are scaled: 1.20M/3.40M."""


_FLAGS = 0
if sys.platform == "win32":
    _FLAGS = subprocess.CREATE_NEW_PROCESS_GROUP | subprocess.BELOW_NORMAL_PRIORITY_CLASS
"""Keeps a terminal's Ctrl+C from the process, like its process group elsewhere: the server stops it, once."""


@dataclass(frozen=True)
class Progress:
    """A line of a progress bar.

    Attributes:
        name: Name of the task.
        done: Steps that are done; hundredths of a task that is measured in bytes.
        total: Steps of the whole task.
        left: Estimated time to the end, as `minutes:seconds`; empty if it is not known yet.
    """

    name: str
    done: int
    total: int
    left: str


def read_progress(line: str) -> Progress | None:
    """Return the progress in a line of a progress bar, or None if it is another line."""
    if match := _BYTES.match(line):
        return Progress(match["name"], int(match["percent"]), 100, match["left"].strip("?"))
    match = _PROGRESS.match(line)
    return Progress(match["name"], int(match["done"]), int(match["total"]), match["left"]) if match else None


class Job:
    """A running or ended command. `start` begins it.

    Args:
        arguments: The program and its arguments.
        folder: Working directory.
        environment: Environment variables to add.
        on_end: Function that gets the job and its exit code after the process has ended, before `code` is set.

    Attributes:
        code: Exit code; None while the process runs.
        output: Text of stdout, after the end.
        messages: Latest lines of stderr that are not progress.
        progress: Latest progress.
        stopping: Whether it was asked to stop.
    """

    def __init__(
        self,
        arguments: Sequence[str],
        folder: Path,
        environment: Mapping[str, str] | None = None,
        on_end: Callable[[Job, int], None] = lambda job, code: None,
    ):
        self._arguments, self._folder, self._environment, self._on_end = arguments, folder, environment or {}, on_end
        self.code: int | None = None
        self._started = time.monotonic()
        self.output, self.stopping = "", False
        self.messages: deque[str] = deque(maxlen=MAX_MESSAGES)
        self.progress: Progress | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._thread = threading.Thread(target=self._run, name="studio-job", daemon=True)
        self._lock = threading.Lock()

    def start(self) -> None:
        """Start the process in a thread that reads what it says."""
        self._thread.start()

    @property
    def seconds(self) -> int:
        """Whole seconds since the job was made."""
        return int(time.monotonic() - self._started)

    @property
    def is_running(self) -> bool:
        """Whether the process has not ended yet."""
        return self.code is None

    def stop(self) -> None:
        """Ask the process to end; training saves first. Asking twice changes nothing, because a second signal would
        end training without saving."""
        with self._lock:
            if self.stopping:
                return
            self.stopping = True
            if self._process is not None:
                self._signal(self._process)

    def close(self, seconds: float = CLOSE_SECONDS) -> None:
        """Stop the process, and kill it if it has not ended after some seconds."""
        self.stop()
        self._thread.join(seconds)
        if self._thread.is_alive() and self._process is not None:
            with contextlib.suppress(OSError):
                self._process.kill()
            self._thread.join(seconds)

    @staticmethod
    def _signal(process: subprocess.Popen[bytes]) -> None:
        with contextlib.suppress(OSError):
            process.terminate()

    def _run(self) -> None:
        """Run the process, read its lines, and keep its exit code."""
        code = 1
        try:
            with tempfile.TemporaryFile("w+", encoding="utf-8", errors="replace") as output:
                code = self._follow(output)
                output.seek(0)
                self.output = output.read(MAX_OUTPUT_CHARACTERS)
        except (OSError, ValueError) as error:  # a ValueError: an argument that no process can have
            reason = getattr(error, "strerror", None) or error
            self.messages.append(f"error: The operating system reports an error: {reason}.")
        try:
            self._on_end(self, code)
        finally:
            self.code = code

    def _follow(self, output: IO[str]) -> int:
        """Read stderr to its end and return the exit code.

        Stderr is a pipe: if this server is killed, the next line of the command fails and the command ends.
        """
        process = subprocess.Popen(
            self._arguments,
            cwd=self._folder,
            env={**os.environ, **self._environment},
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.PIPE,
            creationflags=_FLAGS,
            process_group=0 if os.name == "posix" else None,
        )
        with contextlib.suppress(OSError):
            if sys.platform != "win32":
                os.setpriority(os.PRIO_PROCESS, process.pid, max(NICENESS, os.getpriority(os.PRIO_PROCESS, 0)))
        with self._lock:
            self._process = process
            if self.stopping:
                self._signal(process)
        assert process.stderr is not None
        with process.stderr as pipe:
            rest = b""
            while data := os.read(pipe.fileno(), 1 << 16):
                *lines, rest = re.split(rb"[\r\n]", rest + data)
                for line in lines:
                    self._read_line(line)
                self.progress = read_progress(_text(rest)) or self.progress  # a bar has no line end until the next one
                rest = rest[-MAX_LINE_BYTES:]
            self._read_line(rest)
        return process.wait()

    def _read_line(self, data: bytes) -> None:
        line = _text(data)
        progress = read_progress(line)
        if progress is not None:
            self.progress = progress
        elif line and "%|" not in line:
            self.messages.append(line)


def _text(line: bytes) -> str:
    return line[:MAX_LINE_BYTES].decode("utf-8", "replace").strip()
