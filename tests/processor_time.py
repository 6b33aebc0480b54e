"""Processor time of an action, for tests that bound it."""

from __future__ import annotations

import time
from collections.abc import Callable


def processor_seconds(action: Callable[[], object], limit: float) -> float:
    """Return the seconds of processor time that `action` takes; from `limit` seconds on, those of a second call.

    The first call of its kind in a process also imports modules and fills caches, which takes longer than the action
    and depends on the tests that ran before. A second call takes none of that: what is still slow is the action itself.
    """
    for _ in range(2):
        started = time.process_time()
        action()
        if (spent := time.process_time() - started) < limit:
            break
    return spent
