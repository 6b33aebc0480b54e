"""The folder a build works in, and running its tasks: each result is whole or not there, so a killed build goes on."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

from filelock import FileLock, Timeout

from chatbot.errors import FileError

_KEY = "fingerprint"


def work_path(output: Path) -> Path:
    """Where the work folder of a set is."""
    return output.with_name(f".{output.name}.building")


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
        self._lock = FileLock(output.with_name(f".{output.name}.lock"))
        try:
            self._lock.acquire(timeout=0)
        except Timeout:
            raise FileError(f"Another process is building {output}; wait for it, or give another --output.") from None
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
        self._lock.release()
        Path(self._lock.lock_file).unlink(missing_ok=True)


def write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Lets `write` make a file under another name and renames it, so that a file with its own name is whole."""
    temporary = path.with_name(f"{path.name}.part")
    try:
        write(temporary)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_stream(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """`write_whole` for what writes to an open file."""

    def to_part(part: Path) -> None:
        with part.open("wb") as file:
            write(file)

    write_whole(path, to_part)


def write_json(path: Path, value: object) -> None:
    """`write_whole` of a value as JSON."""
    write_whole(path, lambda part: part.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8"))


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))
