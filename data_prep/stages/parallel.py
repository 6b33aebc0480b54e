"""Run tasks in worker processes, in order, and stop the workers when one fails."""

from __future__ import annotations

import multiprocessing
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool

from chatbot.errors import FileError


class WorkerError(FileError):
    """A worker process died; finished results are kept."""


def run_tasks(function: Callable[..., None], tasks: Iterable[tuple], processes: int) -> Iterator[None]:
    """Call a function with the arguments of each task; yield when a task is done, in the order of the tasks.

    Args:
        function: Function to call: in this process if `processes` is 1, in worker processes if it is larger.
        tasks: Arguments; at most `processes` + 2 tasks are held in memory.
        processes: Number of worker processes.

    Raises:
        WorkerError: A worker died, for example because the system ran out of memory.
    """
    if processes == 1:
        for task in tasks:
            function(*task)
            yield
        return
    pool = ProcessPoolExecutor(processes, multiprocessing.get_context("spawn"), _start_worker)
    try:
        waiting: deque[Future[None]] = deque()
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
            "A worker process died, perhaps because memory ran out. Run the command again with fewer --processes;"
            " it continues from here."
        ) from None
    except BaseException:
        for worker in list((pool._processes or {}).values()):  # kill_workers, from Python 3.14 on
            worker.kill()  # a killed worker leaves complete files or none
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _start_worker() -> None:
    """Prepare a worker process: one thread for tokenizers, because the processes share the cores; Ctrl-C is ignored."""
    import signal

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    signal.signal(signal.SIGINT, signal.SIG_IGN)
