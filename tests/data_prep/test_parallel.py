"""Worker processes stop when one fails, and no other process does. Each worker imports this module, so it is small."""

from __future__ import annotations

import multiprocessing
import os
import time

import pytest

from data_prep.stages.parallel import WorkerError, run_tasks


def nap(seconds: float) -> None:
    time.sleep(seconds)


def fail(number: int) -> None:
    raise ValueError(number)


def stop_early() -> None:
    tasks = run_tasks(nap, [(0.01,), (60,), (60,)], processes=2)
    next(tasks)
    tasks.close()


def fail_in_a_worker() -> None:
    with pytest.raises(ValueError, match="7"):
        list(run_tasks(fail, [(7,)], processes=2))


@pytest.mark.parametrize("end", [stop_early, fail_in_a_worker])
def test_only_workers_of_the_pool_are_killed(end):
    bystander = multiprocessing.get_context("spawn").Process(target=nap, args=(60,))
    bystander.start()
    try:
        start = time.perf_counter()
        end()
        assert time.perf_counter() - start < 40  # the workers are not waited for
        assert bystander.is_alive()
        assert multiprocessing.active_children() == [bystander]
    finally:
        bystander.kill()
        bystander.join()


def die() -> None:
    os._exit(3)


def test_a_worker_that_dies_is_one_sentence():
    with pytest.raises(WorkerError, match="worker process died"):
        list(run_tasks(die, [()], processes=2))
