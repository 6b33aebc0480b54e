"""Keeping freed memory in the process, which glibc otherwise gives back and fetches anew at every step."""

from __future__ import annotations

import ctypes
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3


def keep_freed_memory() -> bool:
    """Raises glibc's mmap and trim thresholds, so that large buffers are reused instead of paged in again.

    Fresh pages cost CPU training a third of its speed. Only does something on Linux with glibc; says whether it did.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, 1 << 30)) and bool(mallopt(_M_TRIM_THRESHOLD, (1 << 31) - 1))
