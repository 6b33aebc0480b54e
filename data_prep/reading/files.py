"""Input files: the files that the inputs name, and their hashes."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator
from pathlib import Path

from chatbot.errors import FileError
from chatbot.text.packed_files import PACKED_SUFFIXES

SUFFIXES = (".conv", ".csv", ".json", ".jsonl", ".tsv", ".txt", *PACKED_SUFFIXES)


def list_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Return the files named by the inputs; a folder stands for all its dialogue files, sorted by path.

    Raises:
        FileError: An input does not exist or is not a regular file, or a folder holds no dialogue file.
    """
    files: list[Path] = []
    for path in map(Path, inputs):
        if path.is_dir():
            in_folder = sorted(file for file in _walk(path) if file.is_file() and file.name.endswith(SUFFIXES))
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


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise FileError(f"Cannot read {error.filename}: {error.strerror}. Allow it, or give another --input.") from None

    for parent, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(parent) / name for name in names)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal digits.

    Raises:
        FileError: The file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"Cannot read {path}: {error.strerror}. Check the path.") from None
