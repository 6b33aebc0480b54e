"""Input files: the files that the inputs name, and their hashes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from pathlib import Path

from chatbot.errors import FileError
from chatbot.storage import files_within
from chatbot.text.packed_files import PACKED_SUFFIXES

SUFFIXES = (".conv", ".csv", ".json", ".jsonl", ".tsv", ".txt", *PACKED_SUFFIXES)

_PART_BYTES = 1 << 20


def list_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the files named by the inputs; a folder stands for all its dialogue files, sorted by path.

    Raises:
        FileError: An input does not exist or is not a regular file, or a folder holds no dialogue file or a link to one
            outside it.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            in_folder = files_within(path, SUFFIXES)
            if not in_folder:
                raise FileError(f"The folder {path} holds no file ending in {', '.join(SUFFIXES)}.")
            files += in_folder
        elif path.is_file():
            files.append(path)
        elif path.exists():
            raise FileError(f"{path} is not a regular file or folder. Save its content to a file first.")
        else:
            raise FileError(f"{path} does not exist. Check the path.")
    return files


def sha256_of(path: Path, count: Callable[[int], object] = lambda _: None) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Args:
        path: The file.
        count: Function that gets the number of bytes of each part that has been read.

    Raises:
        FileError: The file cannot be read.
    """
    try:
        digest = hashlib.sha256()
        with path.open("rb") as file:
            while part := file.read(_PART_BYTES):
                digest.update(part)
                count(len(part))
        return digest.hexdigest()
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror}. Check the path.") from None
