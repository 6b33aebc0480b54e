"""Bytes of input files: which files there are, what they are packed with, and whether they change while read."""

from __future__ import annotations

import bz2
import codecs
import hashlib
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

import zstandard

from chatbot.errors import FileError

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
SUFFIXES = (".json", ".jsonl", ".tsv", ".txt", *PACKED_SUFFIXES)
_NO_TEXT = (b"PK\x03\x04", b"\x1f\x8b", b"\xfd7zXZ", b"BZh9", b"\x28\xb5\x2f\xfd", b"PAR1", b"Rar!", b"%PDF")
CHUNK_BYTES = 1 << 14
"""Read at a time: small, because packed text may be a thousand times as long unpacked."""


def list_files(inputs: Iterable[str | Path]) -> list[Path]:
    """Files named by the inputs; a folder stands for all its dialogue files, sorted by path.

    Raises:
        FileError: An input does not exist, or a folder holds nothing to read.
    """
    files: list[Path] = []
    for entry in map(Path, inputs):
        if entry.is_dir():
            found = sorted(file for file in _walk(entry) if file.is_file() and file.name.endswith(SUFFIXES))
            if not found:
                raise FileError(f"The folder {entry} holds no file ending in {', '.join(SUFFIXES)}.")
            files += found
        elif entry.is_file():
            files.append(entry)
        elif entry.exists():
            raise FileError(f"{entry} is neither a file nor a folder; write what comes from it to a file first.")
        else:
            raise FileError(f"{entry} does not exist; check the path.")
    return files


def _walk(folder: Path) -> Iterator[Path]:
    def refuse(error: OSError) -> None:
        raise FileError(
            f"{error.filename} cannot be read: {error.strerror}; allow it, or give other --input."
        ) from None

    for place, _, names in os.walk(folder, onerror=refuse):
        yield from (Path(place) / name for name in names)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, in hexadecimal digits.

    Raises:
        FileError: It cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}; check the path.") from None


class Reader:
    """Unpacked bytes of a file, plain, gzip, bzip2, xz or zstd by its first bytes, UTF-16 as UTF-8, in one pass.

    Attributes:
        path: The file.
        packed_bytes: How many of its own bytes have been read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.packed_bytes = 0
        self._digest = hashlib.sha256()

    def chunks(self) -> Iterator[bytes]:
        """Pieces of the content, of any length, without a byte order mark.

        Raises:
            FileError: The file cannot be read, is cut short or damaged.
        """
        try:
            content = _transcoded(_unpacked(self._packed()))
            first = next(content, b"")
            if first.startswith(_NO_TEXT) or first.count(0) * 10 > len(first):
                raise FileError(f"{self.path} is no text: unpack it, or convert it to UTF-8, first.")
            yield first
            yield from content
        except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
            raise FileError(f"{self.path} is cut short or damaged ({error}); fetch or pack it again.") from None
        except UnicodeDecodeError:
            raise FileError(f"{self.path} begins like UTF-16 and is not; convert it to UTF-8.") from None
        except OSError as error:
            raise FileError(f"{self.path} cannot be read: {error.strerror}; check the path.") from None

    def check(self, sha256: str) -> None:
        """After the last chunk: that the file is still what it was when it was hashed.

        Raises:
            FileError: It changed.
        """
        if self._digest.hexdigest() != sha256:
            raise FileError(f"{self.path} changed while it was read; run again when nothing writes to it.")

    def _packed(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(CHUNK_BYTES):
                self.packed_bytes += len(chunk)
                self._digest.update(chunk)
                yield chunk


def _unpacked(packed: Iterator[bytes]) -> Iterator[bytes]:
    first = next(packed, b"")
    if not first:
        return
    if first.startswith(b"\x1f\x8b"):
        new = lambda: zlib.decompressobj(31)  # noqa: E731
    elif first.startswith(b"\xfd7zXZ"):
        new = lzma.LZMADecompressor
    elif first.startswith(b"\x28\xb5\x2f\xfd"):
        new = lambda: zstandard.ZstdDecompressor().decompressobj()  # noqa: E731
    elif first.startswith(b"BZh"):
        new = bz2.BZ2Decompressor
    else:
        yield first
        yield from packed
        return
    unpacker, rest = new(), first
    while True:
        if unpacker.eof:
            rest = rest.lstrip(b"\0")  # padding between the parts of a file
            if rest:
                unpacker = new()
        if rest:
            if content := unpacker.decompress(rest):
                yield content
            rest = unpacker.unused_data if unpacker.eof else b""
            if rest:
                continue
        rest = next(packed, b"")
        if not rest:
            break
    if not unpacker.eof:
        raise EOFError("the end is missing")


def _transcoded(content: Iterator[bytes]) -> Iterator[bytes]:
    """UTF-16 with a byte order mark as UTF-8; anything else as it is, without the mark."""
    first = next(content, b"")
    if first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        decoder = codecs.getincrementaldecoder("utf-16")()
        yield decoder.decode(first).encode("utf-8", "surrogatepass")
        for chunk in content:
            yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
        yield decoder.decode(b"", final=True).encode()
        return
    yield first.removeprefix(codecs.BOM_UTF8)
    yield from content
