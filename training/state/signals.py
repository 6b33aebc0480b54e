"""Signals that end a run: it saves its state first."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType
from typing import Protocol

from training.reporting.logs import RunLogs


class StoppableRun(Protocol):
    """Run that ends after the current step when `stop_signal` is set."""

    stop_signal: str | None
    logs: RunLogs


@contextmanager
def stopping(run: StoppableRun) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM save and end the run after the current step; a second signal ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        received = signal.Signals(number)
        run.stop_signal = received.name
        with suppress(RuntimeError):  # the signal came while a line was being written
            run.logs.message("stopping after this step; press again to stop at once, without saving")
        signal.signal(received, before[received])

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
