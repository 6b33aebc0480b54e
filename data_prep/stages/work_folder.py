"""The folder a build works in, and running its tasks: each result is whole or not there, so a killed build goes on."""

from __future__ import annotations

import os
import shutil
from contextlib import suppress
from pathlib import Path

from filelock import FileLock, Timeout

from chatbot.errors import FileError
from chatbot.storage import write_whole

_KEY = "fingerprint"


def work_path(output: Path) -> Path:
    """Where the work folder of a set is."""
    return output.with_name(f".{output.name}.building")


def _acquire(output: Path) -> FileLock:
    """Lock a set for building.

    The lock file is removed when a build ends. A process that waited for that file then holds the lock of a file that is
    gone, while a third one locks a new file of the same name, so the lock counts only if the name still means its file.

    Raises:
        FileError: Another process builds the same set.
    """
    path = output.with_name(f".{output.name}.lock")
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FileError(f"Another process is building {output}; wait for it, or give another --output.") from None
        with suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(lock._context.lock_file_fd), path.stat()):
                return lock
        lock.release()


class WorkFolder:
    """Results so far of one build, beside its output: `.NAME.building`.

    Another build's results (other inputs, other settings) are thrown away, never taken.

    Args:
        output: The set to be built.
        fingerprint: Of everything that decides its content.

    Raises:
        FileError: Another process builds the same set.
    """

    def __init__(self, output: Path, fingerprint: str):
        self.path = work_path(output)
        output.with_name(f".{output.name}.lock").open("a").close()  # says what is wrong with the place, if anything
        self._lock = _acquire(output)
        key = self.path / _KEY
        if not key.is_file() or key.read_text() != fingerprint:
            self._remove()
        self.is_resumed = key.is_file()
        if not self.is_resumed:
            self.path.mkdir(parents=True)
            write_whole(key, lambda part: part.write_text(fingerprint))

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def _remove(self) -> None:
        """The key goes first, so that a folder which is half removed is not taken for one to go on from."""
        (self.path / _KEY).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self, keep: bool) -> None:
        """Lets go of the folder; without `keep` it is removed."""
        if not keep:
            self._remove()
        with suppress(OSError):  # Windows removes no open file; it stays there, empty
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()
