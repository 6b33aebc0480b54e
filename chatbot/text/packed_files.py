"""Reads text files, plain or compressed, in one pass and in bounded memory.

Compressed data is recognised by its first bytes and decompressed in pieces of at most `CONTENT_BYTES`, because a file
of a few kilobytes can hold gigabytes. UTF-16 with a byte order mark becomes UTF-8.
"""

from __future__ import annotations

import bz2
import codecs
import hashlib
import lzma
import zlib
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Protocol

import zstandard

from chatbot.errors import FileError
from chatbot.text.dialogue import valid_text

PACKED_SUFFIXES = (".gz", ".bz2", ".xz", ".zst")
FILE_BYTES = 1 << 14
"""Number of bytes read from a file at a time."""
CONTENT_BYTES = 1 << 20
"""Largest piece of decompressed content, except for zstd: see `_Zstd`."""
HEAD_BYTES = 1 << 16
"""Part of a file from which its encoding and line ends are recognised."""
MAX_LINE_BYTES = 16 << 20
"""Longest line that can be a dialogue."""
_XZ_MEMORY_BYTES = 512 << 20
"""Memory that one xz stream may ask for: eight times what `xz -9` uses."""
_NOT_TEXT = (b"PK\x03\x04", b"\x1f\x8b", b"\xfd7zXZ", b"BZh9", b"\x28\xb5\x2f\xfd", b"PAR1", b"Rar!", b"%PDF")


class PackedFile:
    """Decompressed content of a file, which can be read once; UTF-16 is converted to UTF-8.

    Args:
        path: File: plain, gzip, bzip2, xz or zstd.

    Attributes:
        path: The file.
        read_bytes: Number of bytes of the file, before decompression, that have been read.
    """

    def __init__(self, path: Path):
        self.path = path
        self.read_bytes = 0
        self._digest = hashlib.sha256()

    def chunks(self) -> Iterator[bytes]:
        """Yield the content in order, in chunks of any length, without a byte order mark.

        Raises:
            FileError: The file cannot be read, is cut short, damaged or not text.
        """
        try:
            content = _as_utf8(_decompressed(self._file_chunks()))
            first = next(content, b"")
            if first.startswith(_NOT_TEXT) or _is_binary(first):
                raise FileError(f"{self.path} is not text. Unpack it, or convert it to UTF-8, first.")
            yield first
            yield from content
        except (EOFError, lzma.LZMAError, zlib.error, zstandard.ZstdError) as error:
            raise FileError(f"{self.path} is cut short or damaged ({error}). Download or compress it again.") from None
        except UnicodeDecodeError:
            raise FileError(f"{self.path} begins like UTF-16 but is not UTF-16. Convert it to UTF-8.") from None
        except OSError as error:
            if error.errno is None:  # bz2 raises OSError for damaged data
                raise FileError(f"{self.path} is damaged ({error}). Download or compress it again.") from None
            raise FileError(f"Cannot read {self.path}: {error.strerror}. Check the path.") from None

    def check_unchanged(self, sha256: str) -> None:
        """Compare the hash of the bytes that `chunks` has read with the earlier hash of the file.

        Raises:
            FileError: The file changed while it was read.
        """
        if self._digest.hexdigest() != sha256:
            raise FileError(f"{self.path} changed while it was read. Run again when no program writes to it.")

    def _file_chunks(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            while chunk := file.read(FILE_BYTES):
                self.read_bytes += len(chunk)
                self._digest.update(chunk)
                yield chunk


def _is_binary(data: bytes) -> bool:
    """Whether more than 10 % of the bytes are zero, or more than 5 % are other control characters."""
    controls = sum(data.count(code) for code in _CONTROLS)
    return data.count(0) * 10 > len(data) or controls * 20 > len(data)


_CONTROLS = (*range(1, 9), 11, *range(14, 27), *range(28, 32), 127)
"""Control characters that do not occur in text: all but tab, line ends, form feed and escape."""


def read_lines(path: Path) -> Iterator[str]:
    """Yield the lines of a file, in UTF-8 or GB18030, without their line ends.

    Raises:
        FileError: The file is empty or cannot be read, or a line is longer than `MAX_LINE_BYTES` or is not text.
    """
    is_empty = True
    for number, line in enumerate(_split_lines(PackedFile(path)), 1):
        is_empty = is_empty and not line
        text = decode_line(line)
        if text is None:
            raise FileError(f"Line {number} of {path} is neither UTF-8 nor GB18030. Convert the file to UTF-8.")
        yield text.removesuffix("\r")
    if is_empty:
        raise FileError(f"{path} is empty. Give a file with dialogues.")


def decode_line(line: bytes) -> str | None:
    """Return the text of a line in UTF-8 or else GB18030, with U+FFFD for lone surrogates; None if it is neither."""
    try:
        return line.decode().removeprefix("\ufeff")
    except UnicodeDecodeError:
        pass
    for encoding, errors in (("utf-8", "surrogatepass"), ("gb18030", "strict")):
        try:
            return valid_text(line.decode(encoding, errors))
        except UnicodeDecodeError:
            continue
    return None


def _split_lines(file: PackedFile) -> Iterator[bytes]:
    held = bytearray()
    for chunk in file.chunks():
        held += chunk
        if b"\n" in chunk:
            *lines, rest = bytes(held).split(b"\n")
            yield from lines
            held = bytearray(rest)
        if len(held) > MAX_LINE_BYTES:
            limit = f"{MAX_LINE_BYTES >> 20} MB"
            raise FileError(f"{file.path} has a line of more than {limit}. Give a file with one dialogue per line.")
    if held:
        yield bytes(held)


# --- decompression ---


class _Decompressor(Protocol):
    """Decompressor of one member of a file, with the interface of `bz2.BZ2Decompressor` and `lzma.LZMADecompressor`."""

    @property
    def eof(self) -> bool:
        """Whether the end of the member has been reached."""

    @property
    def needs_input(self) -> bool:
        """Whether more compressed data is needed to produce more content."""

    @property
    def unused_data(self) -> bytes:
        """Compressed data after the end of the member."""

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        """Return at most `max_length` bytes of content; the rest waits for the next call."""


class _Gzip:
    """Decompressor of a gzip member."""

    def __init__(self) -> None:
        self._stream = zlib.decompressobj(wbits=31)  # 15 bits of window, + 16 for a gzip header

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._stream.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        return self._stream.decompress(self._stream.unconsumed_tail + data, max(max_length, 0))


class _Zstd:
    """Decompressor of a zstd frame.

    The library cannot limit the length of its output, so it gets the frame 128 bytes at a time. A block takes at least
    4 bytes and yields at most 128 KiB, so a step yields at most 4 MiB. zstd refuses frames with a window above 128 MiB.
    """

    _STEP = 128

    def __init__(self) -> None:
        self._stream = zstandard.ZstdDecompressor().decompressobj()
        self._waiting = b""

    @property
    def eof(self) -> bool:
        return self._stream.eof

    @property
    def needs_input(self) -> bool:
        return not self._waiting

    @property
    def unused_data(self) -> bytes:
        return self._stream.unused_data + self._waiting

    def decompress(self, data: bytes, max_length: int = -1) -> bytes:
        data = self._waiting + data
        parts: list[bytes] = []
        size = position = 0
        while position < len(data) and not self._stream.eof and not 0 <= max_length <= size:
            parts.append(self._stream.decompress(data[position : position + self._STEP]))
            position += self._STEP
            size += len(parts[-1])
        self._waiting = data[position:]
        return b"".join(parts)


_DECOMPRESSORS: dict[bytes, Callable[[], _Decompressor]] = {
    b"\x1f\x8b": _Gzip,
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ": lambda: lzma.LZMADecompressor(memlimit=_XZ_MEMORY_BYTES),
    b"\x28\xb5\x2f\xfd": _Zstd,
}
"""Decompressors by the first bytes of the file."""


def _decompressed(packed: Iterator[bytes]) -> Iterator[bytes]:
    """Yield the content of compressed data of one or more members; other data is yielded unchanged."""
    data = next(packed, b"")
    new = next((new for magic, new in _DECOMPRESSORS.items() if data.startswith(magic)), None)
    if new is None:
        if data:
            yield data
        yield from packed
        return
    member = new()
    while True:
        if content := member.decompress(data, CONTENT_BYTES):
            yield content
        data = b""
        if member.eof:
            data = _without_padding(member.unused_data, packed)
            if not data:
                return
            member = new()
        elif member.needs_input:
            data = next(packed, b"")
            if not data:
                raise EOFError("the end is missing")


def _without_padding(data: bytes, packed: Iterator[bytes]) -> bytes:
    """Return the data after the zeros that may fill the space between two members; empty at the end of the file."""
    data = data.lstrip(b"\0")
    while not data:
        chunk = next(packed, b"")
        if not chunk:
            break
        data = chunk.lstrip(b"\0")
    return data


def _as_utf8(content: Iterator[bytes]) -> Iterator[bytes]:
    """Yield UTF-16 with a byte order mark and Big5 as UTF-8, anything else as it is, with `\\n` as line end.

    A byte order mark at the beginning is removed. A lone `\\r`, the line end of old programs, becomes `\\n`.
    """
    first = next(content, b"")
    while len(first) < HEAD_BYTES and (more := next(content, b"")):
        first += more
    encoding = _encoding_of(first[:HEAD_BYTES])
    if encoding is not None:
        content = _recoded(chain([first], content), encoding)
        first = next(content, b"")
    first = first.removeprefix(codecs.BOM_UTF8)
    if b"\r" in first[:HEAD_BYTES] and b"\n" not in first[:HEAD_BYTES]:
        content = (chunk.replace(b"\r", b"\n") for chunk in content)
        first = first.replace(b"\r", b"\n")
    yield first
    yield from content


def _recoded(content: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    errors = "strict" if encoding == "utf-16" else "replace"
    decoder = codecs.getincrementaldecoder(encoding)(errors)
    for chunk in content:
        yield decoder.decode(chunk).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", final=True).encode("utf-8", "surrogatepass")


def _encoding_of(head: bytes) -> str | None:
    """Return the encoding of a text that begins with `head`, or None for UTF-8, GB18030 and anything else.

    Most Big5 text can also be decoded as GB18030, but then gives rare characters. So the text counts as Big5 if this
    gives a larger share of very common characters.
    """
    if head.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "utf-16"
    if _decoded(head, "utf-8") is not None:
        return None
    big5, gb18030 = _decoded(head, "big5hkscs"), _decoded(head, "gb18030")
    if big5 is None or (gb18030 is not None and _common_share(gb18030) >= _common_share(big5)):
        return None
    return "big5hkscs"


def _decoded(head: bytes, encoding: str) -> str | None:
    """Decode the first bytes of a file, without a character that is cut off at the end; None if they do not decode."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(head)
    except UnicodeDecodeError:
        return None


COMMON = frozenset("的我你是不了在有人一他就好吗吧呢啊这那么说要来去上个到看没想天什怎也都們這嗎來個還沒說時後會對麼點")
"""Some of the commonest characters, simplified and traditional."""


def _common_share(text: str) -> float:
    characters = [character for character in text if ord(character) > 127]
    return sum(character in COMMON for character in characters) / max(1, len(characters))
