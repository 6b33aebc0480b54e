"""One writer a folder: a lock file that a killed process holds no longer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from chatbot.errors import XianliaoError

LOCK = ".lock"


@contextmanager
def only_one(folder: Path, error: XianliaoError) -> Iterator[None]:
    """Keeps others out of a folder, which is made when missing, for as long as the block lasts.

    Raises:
        XianliaoError: `error`; another process is in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / LOCK)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise error from None
    try:
        yield
    finally:
        lock.release()
