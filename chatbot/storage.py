"""Files that are whole or absent, and one process at a time in a folder.

Every file that another process may read, or that a stopped program goes on from, is written here: under a temporary name
beside its place, then renamed, which replaces the old file in one step. A crash leaves the old file as it was.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from chatbot.errors import CheckpointError, XianliaoError

LOCK = ".lock"


@contextmanager
def exclusive(folder: Path, error: XianliaoError, lock: str = LOCK) -> Iterator[None]:
    """Create a folder if it is missing and keep other processes out of it while the block runs.

    The lock file stays: removing it would let two processes lock two files of the same name. The operating system releases
    the lock of a process that is killed.

    Args:
        folder: Folder to lock.
        error: Raised if another process holds the lock.
        lock: Name of the lock file in the folder.

    Raises:
        XianliaoError: `error`; another process holds the lock.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = FileLock(folder / lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        raise error from None
    try:
        yield
    finally:
        held.release()


def read_json(
    path: Path, error: type[XianliaoError] = CheckpointError, advice: str = "copy or train the checkpoint again"
) -> dict:
    """Return the JSON object in a file.

    Args:
        path: File to read.
        error: Class of the exception for an unusable file.
        advice: What to do about an unusable file; the end of the message.

    Raises:
        XianliaoError: `error`; the file is missing, damaged, nested too deeply, or not a JSON object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as cause:
        reason = getattr(cause, "strerror", None) or str(cause)
        raise error(f"{path} cannot be read ({reason}); {advice}.") from None
    if not isinstance(value, dict):
        raise error(f"{path} holds no JSON object; {advice}.")
    return value


def write_json(path: Path, value: object, durable: bool = True) -> None:
    """Write a value as JSON, atomically."""
    with replacing(path, durable) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path, durable: bool = True, mode: int = 0o644) -> Iterator[Path]:
    """Yield a temporary path that replaces `path` when the block ends without an exception.

    Args:
        path: File to write.
        durable: Whether to wait until the data is on the disk; switch it off for files that can be made again.
        mode: Permissions of the file.
    """
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        if durable:
            sync(temporary)
        temporary.chmod(mode)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """Yield a temporary folder whose files replace those of the same names in `folder` when the block ends."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            sync(file)
            file.chmod(0o644)
            os.replace(file, folder / file.name)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Let `write` make an intermediate file under a temporary name, then rename it; it need not survive a power failure."""
    with replacing(path, durable=False) as temporary:
        write(temporary)


def write_stream(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """`write_whole` for a function that writes to an open binary file."""

    def to_file(temporary: Path) -> None:
        with temporary.open("wb") as file:
            write(file)

    write_whole(path, to_file)


def sync(file: Path) -> None:
    """Wait until a file's data is on the disk."""
    with file.open("r+b") as handle:  # Windows syncs only files that are open for writing
        os.fsync(handle.fileno())
