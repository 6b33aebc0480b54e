"""One writer a folder: a lock file that a killed process holds no longer."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from chatbot.errors import CheckpointError, XianliaoError

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


def read_json(path: Path) -> dict:
    """A JSON object from a file.

    Raises:
        CheckpointError: The file is missing, damaged or holds something else.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise CheckpointError(f"{path} cannot be read ({reason}); copy or train the checkpoint again.") from None
    if not isinstance(value, dict):
        raise CheckpointError(f"{path} holds no JSON object; copy or train the checkpoint again.")
    return value


def write_json(path: Path, value: dict) -> None:
    """Writes a JSON object, atomically."""
    with replacing(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place when the block ends well; a crash leaves `path` as it was."""
    handle, name = tempfile.mkstemp(prefix=f".{path.name}-", dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("r+b") as file:  # Windows syncs only what can be written
            os.fsync(file.fileno())
        temporary.chmod(0o644)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_files(folder: Path) -> Iterator[Path]:
    """A temporary folder whose files take their places in `folder`, by name, when the block ends well."""
    with tempfile.TemporaryDirectory(prefix=".new-", dir=folder) as temporary:
        yield Path(temporary)
        for file in sorted(Path(temporary).iterdir()):
            with file.open("r+b") as handle:  # Windows syncs only what can be written
                os.fsync(handle.fileno())
            file.chmod(0o644)
            os.replace(file, folder / file.name)
