"""Run tasks in worker processes, in order, and stop the workers when one fails."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from chatbot.errors import FileError


class WorkerError(FileError):
    """A worker process died; what is done stays done."""


def run_tasks(function: Callable, tasks: Iterable[tuple], processes: int) -> Iterator[None]:
    """Calls the function with each task's arguments; yields when one is done, in the order of the tasks.

    With one process it runs here; otherwise few tasks wait at a time, so that their arguments stay few in memory.

    Raises:
        WorkerError: A worker died, as it does when the system runs out of memory.
    """
    if processes == 1:
        for task in tasks:
            function(*task)
            yield
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _quiet)
    try:
        waiting: deque = deque()
        for task in tasks:
            waiting.append(pool.submit(function, *task))
            if len(waiting) > processes + 1:
                waiting.popleft().result()
                yield
        while waiting:
            waiting.popleft().result()
            yield
    except BrokenProcessPool:
        raise WorkerError(
            "A worker process died, perhaps for want of memory; run again, with fewer --processes, to go on from here."
        ) from None
    except BaseException:
        for worker in multiprocessing.active_children():  # what they were at is not there, or whole
            worker.kill()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _quiet() -> None:
    """What a worker process sets: the cores are shared by processes already."""
    import signal

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is told, and ends us
