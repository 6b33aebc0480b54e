"""Threads for work on clients' texts: checks, tokenization, and parsing of large bodies.

This work holds Python's lock, so more threads would not finish it sooner, but they would delay the event loop and the
decoding. Short, small and large texts have a thread each, so that a short message never waits for long ones. The queue
of a thread is called its lane: the senders in a lane take turns, and each may fill only a share of it.
"""

from __future__ import annotations

import asyncio
import contextvars
import threading
from collections import OrderedDict, deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from chatbot.chat.worker import SHUTTING_DOWN, WorkerError
from chatbot.errors import XianliaoError

SHORT_CHARACTERS, LARGE_CHARACTERS = 2_000, 20_000
"""Limits of the short and of the small lane, in characters of a text or bytes of a body; the rest takes the large lane."""

MOST_WAITING = {"short": 256, "small": 64, "large": 32}
"""Number of calls that may wait in each lane."""

MOST_OF_SENDER = {"short": 64, "small": 16, "large": 8}
"""Number of calls of one sender that may wait in each lane."""

SENDER: contextvars.ContextVar[str] = contextvars.ContextVar("sender", default="")
"""Address, key or user of the request that is answered in this context."""

P = ParamSpec("P")
T = TypeVar("T")


class OverloadError(XianliaoError):
    """Too many calls wait for a thread."""

    def __init__(self) -> None:
        super().__init__("The server has too many texts to read at the moment. Try again in a moment.")


_Call = tuple[Future[Any], contextvars.Context, Callable[[], Any]]


class WorkPool:
    """Three threads, each with a bounded queue in which senders take turns."""

    def __init__(self) -> None:
        self._executors = {lane: ThreadPoolExecutor(1, f"{lane}-texts") for lane in MOST_WAITING}
        self._lock, self._inside = threading.Lock(), threading.local()
        self.waiting = dict.fromkeys(MOST_WAITING, 0)
        self._of_sender: dict[str, dict[str, int]] = {lane: {} for lane in MOST_WAITING}
        self._queues: dict[str, OrderedDict[str, deque[_Call]]] = {lane: OrderedDict() for lane in MOST_WAITING}

    def run(self, size: int, function: Callable[P, T], /, *values: P.args, **named: P.kwargs) -> T:
        """Call a function in one of the threads and return its result; a nested call runs at once.

        Args:
            size: Number of characters or bytes of the work.
            function: The function.
            values: Its positional arguments.
            named: Its other arguments.

        Raises:
            OverloadError: Too many calls wait.
            WorkerError: The server is closing.
        """
        if getattr(self._inside, "is_worker", False):
            return function(*values, **named)
        return self._submit(size, lambda: function(*values, **named)).result()

    async def run_async(self, size: int, function: Callable[P, T], /, *values: P.args, **named: P.kwargs) -> T:
        """Do the same as `run` without blocking the event loop."""
        return await asyncio.wrap_future(self._submit(size, lambda: function(*values, **named)))

    def close(self) -> None:
        """End the threads after the calls in progress, and let the waiting calls fail with an error in words."""
        for executor in self._executors.values():
            executor.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            calls = [call for queues in self._queues.values() for queue in queues.values() for call in queue]
            for queues in self._queues.values():
                queues.clear()
        for future, *_ in calls:
            if future.set_running_or_notify_cancel():
                future.set_exception(WorkerError(SHUTTING_DOWN))

    def _submit(self, size: int, call: Callable[[], T]) -> Future[T]:
        lane = "short" if size <= SHORT_CHARACTERS else "small" if size <= LARGE_CHARACTERS else "large"
        sender, future = SENDER.get(), Future[T]()
        with self._lock:
            of_sender = self._of_sender[lane].get(sender, 0)
            if self.waiting[lane] > MOST_WAITING[lane] or of_sender > MOST_OF_SENDER[lane]:
                raise OverloadError
            self.waiting[lane] += 1
            self._of_sender[lane][sender] = of_sender + 1
            queue = self._queues[lane].setdefault(sender, deque())
            queue.append((future, contextvars.copy_context(), call))
        future.add_done_callback(lambda _: self._leave(lane, sender))
        try:
            self._executors[lane].submit(self._run_next, lane)
        except RuntimeError:  # the server is closing
            future.cancel()
            raise WorkerError(SHUTTING_DOWN) from None
        return future

    def _leave(self, lane: str, sender: str) -> None:
        with self._lock:
            self.waiting[lane] -= 1
            self._of_sender[lane][sender] -= 1
            if not self._of_sender[lane][sender]:
                del self._of_sender[lane][sender]

    def _run_next(self, lane: str) -> None:
        """Run the oldest call of the sender whose turn it is; this method runs once for each call that was submitted."""
        queues = self._queues[lane]
        with self._lock:
            if not queues:  # the pool was closed meanwhile
                return
            sender, queue = next(iter(queues.items()))
            future, context, call = queue.popleft()
            if queue:
                queues.move_to_end(sender)
            else:
                del queues[sender]
        if not future.set_running_or_notify_cancel():
            return
        self._inside.is_worker = True
        try:
            future.set_result(context.run(call))
        except BaseException as error:
            future.set_exception(error)
