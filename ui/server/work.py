"""Threads for work on clients' texts: checks, tokenization, and parsing of large bodies.

This work holds Python's lock, so more threads would not finish it sooner, but they would delay the event loop and the
decoding. Small texts have a separate thread, so that they never wait for large ones.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from chatbot.errors import XianliaoError

LARGE_CHARACTERS = 20_000
"""Texts and bodies of more characters or bytes share the thread for large ones."""

MOST_WAITING = {"small": 256, "large": 32}
"""Number of calls that may wait for each thread."""

P = ParamSpec("P")
T = TypeVar("T")


class OverloadError(XianliaoError):
    """Too many calls wait for a thread."""

    def __init__(self) -> None:
        super().__init__("The server has too many texts to read at the moment. Try again in a moment.")


class WorkPool:
    """Two threads, each with a bounded queue."""

    def __init__(self) -> None:
        self._executors = {lane: ThreadPoolExecutor(1, f"{lane}-texts") for lane in MOST_WAITING}
        self._lock, self._inside = threading.Lock(), threading.local()
        self.waiting = dict.fromkeys(MOST_WAITING, 0)

    def run(self, size: int, function: Callable[P, T], /, *values: P.args, **named: P.kwargs) -> T:
        """Call a function in one of the threads and return its result; a nested call runs at once.

        Args:
            size: Number of characters or bytes of the work.
            function: The function.
            values: Its positional arguments.
            named: Its other arguments.

        Raises:
            OverloadError: Too many calls wait.
        """
        if getattr(self._inside, "is_worker", False):
            return function(*values, **named)
        return self._submit(size, lambda: function(*values, **named)).result()

    async def run_async(self, size: int, function: Callable[P, T], /, *values: P.args, **named: P.kwargs) -> T:
        """Do the same as `run` without blocking the event loop."""
        return await asyncio.wrap_future(self._submit(size, lambda: function(*values, **named)))

    def close(self) -> None:
        """End the threads after the calls in progress."""
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)

    def _submit(self, size: int, call: Callable[[], T]) -> Future[T]:
        lane = "large" if size > LARGE_CHARACTERS else "small"
        with self._lock:
            if self.waiting[lane] > MOST_WAITING[lane]:
                raise OverloadError
            self.waiting[lane] += 1
        try:
            future = self._executors[lane].submit(contextvars.copy_context().run, self._call, call)
        except RuntimeError:  # the server is closing
            self._leave(lane)
            raise OverloadError from None
        future.add_done_callback(lambda _: self._leave(lane))
        return future

    def _leave(self, lane: str) -> None:
        with self._lock:
            self.waiting[lane] -= 1

    def _call(self, call: Callable[[], Any]) -> Any:
        self._inside.is_worker = True
        return call()
