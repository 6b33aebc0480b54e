"""Work folder of a build: results so far, each file whole or absent, so that a killed build can continue."""

from __future__ import annotations

import errno
import json
import os
import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from chatbot.errors import FileError, XianliaoError, first_line
from chatbot.language.translation import translate
from chatbot.storage import replacing
from data_prep.stages.parallel import WorkerError

_KEY = "fingerprint"


def work_path(output: Path) -> Path:
    """Return the path of the work folder of a set: `.NAME.building` beside it."""
    return output.with_name(f".{output.name}.building")


def read_result(path: Path) -> dict[str, Any]:
    """Return the JSON object of a stage; our own files may have any size.

    Raises:
        FileError: The file cannot be read, as after a loss of power.
    """
    try:
        content: dict[str, Any] = json.loads(path.read_bytes())
        return content
    except (OSError, ValueError) as error:
        raise FileError(
            f"{path.name}, the result of an interrupted build, cannot be read ({first_line(error)}). Run the command again;"
            " it starts from the beginning."
        ) from None


def _acquire(output: Path) -> FileLock:
    """Lock a set for building.

    The lock file is removed when a build ends. A process that waited for that file then holds a lock on a deleted file,
    while a third process can lock a new file of the same name. So a lock counts only if the name still leads to the
    locked file.

    Raises:
        FileError: Another process is building the same set.
    """
    path = output.with_name(f".{output.name}.lock")
    while True:
        lock = FileLock(path)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise FileError(f"Another process is building {output}. Wait for it, or give another --output.") from None
        descriptor = lock._context.lock_file_fd
        with suppress(FileNotFoundError):
            if descriptor is not None and os.path.samestat(os.fstat(descriptor), path.stat()):
                return lock
        lock.release()


class WorkFolder:
    """The work folder of one build, locked for this process.

    Results of a build with other inputs or settings are deleted, never used.

    Args:
        output: The set to build.
        fingerprint: Hash of everything that decides its content.

    Attributes:
        path: The folder.
        is_resumed: Whether the folder holds results of an earlier build with the same fingerprint.

    Raises:
        FileError: Another process is building the same set.
    """

    def __init__(self, output: Path, fingerprint: str):
        self.path = work_path(output)
        output.with_name(f".{output.name}.lock").open("a").close()  # raises an OSError if the folder is not writable
        self._lock = _acquire(output)
        key = self.path / _KEY
        if not key.is_file() or key.read_text() != fingerprint:
            self._remove()
        self.is_resumed = key.is_file()
        if not self.is_resumed:
            self.path.mkdir(parents=True)
            with replacing(key, durable=False) as temporary:
                temporary.write_text(fingerprint)

    def __truediv__(self, name: str) -> Path:
        return self.path / name

    def _remove(self) -> None:
        """Delete the folder, the fingerprint first, so that a half-deleted folder is not resumed."""
        (self.path / _KEY).unlink(missing_ok=True)
        shutil.rmtree(self.path, ignore_errors=True)

    def release(self, keep: bool) -> None:
        """Unlock the folder, and delete it unless `keep` is set."""
        if not keep:
            self._remove()
        with suppress(OSError):  # Windows cannot remove an open file; an empty lock file is left there
            Path(self._lock.lock_file).unlink(missing_ok=True)
        self._lock.release()


@contextmanager
def open_work_folder(output: Path, fingerprint: str) -> Iterator[WorkFolder]:
    """Yield the work folder; it is kept if the build was interrupted and can continue from it.

    Raises:
        FileError: Another process is building the same set, or the disk is full.
    """
    work = WorkFolder(output, fingerprint)
    keep = True
    try:
        if work.is_resumed:
            print(translate(f"continuing the build of {output} that was interrupted"), file=sys.stderr)
        yield work
        keep = False
    except WorkerError:
        raise
    except XianliaoError:  # running again would fail again
        keep = False
        raise
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise FileError(
                f"The disk with {output} is full. Free some space and run the command again; it continues from here."
            ) from None
        raise
    finally:
        work.release(keep)
