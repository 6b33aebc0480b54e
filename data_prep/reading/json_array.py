"""Elements of a JSON array that may be larger than memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path

from chatbot.errors import FileError, first_line
from chatbot.text.packed_files import MAX_LINE_BYTES
from data_prep.reading.records import MAX_VALUES, has_many_values

MAX_ELEMENT_CHARACTERS = MAX_LINE_BYTES
"""Maximum length of an element; a longer one cannot be a dialogue."""

_BLANK = "\0 \t\r\n"
_SPACE = re.compile(r"[\s\0]*")


def read_array(texts: Iterator[str], path: Path) -> Iterator[object]:
    """Yield the elements of one JSON array.

    Args:
        texts: The file, in parts of any length; the first one begins with the array.
        path: The file, for error messages.

    Raises:
        FileError: The array is cut short, damaged or nested too deeply, or an element is too long or has too many values.
    """
    yield from _ArrayReader(texts, path).elements()


def read_arrays_of_object(texts: Iterator[str], path: Path) -> Iterator[tuple[str, object]]:
    """Read one JSON object: yield (key, element) for each element of its arrays, and (key, value) for its objects.

    `{"name": "小海", "messages": [1, 2], "chats": {}}` yields ("messages", 1), ("messages", 2) and ("chats", {}).

    Args:
        texts: The file, in parts of any length; the first one begins with the object.
        path: The file, for error messages.

    Raises:
        FileError: As for `read_array`, or text follows the object.
    """
    yield from _ArrayReader(texts, path).members()


class _ArrayReader:
    """Position in an array that is being read."""

    def __init__(self, texts: Iterator[str], path: Path):
        self._texts, self._path = texts, path
        self._text = next(texts).lstrip("\ufeff" + _BLANK)[1:]
        self._position = 0
        self._count = 0
        self._is_all_read = False

    def elements(self) -> Iterator[object]:
        while self._go_to_element():
            yield self._decode_element()
            self._count += 1
        rest = self._text[self._position + 1 :]
        if rest.strip(_BLANK) or any(text.strip(_BLANK) for text in self._texts):
            raise self._fault("text follows the array")

    def members(self) -> Iterator[tuple[str, object]]:
        while self._go_to_element("}"):
            key = self._decode_element()
            self._skip_space()
            if not isinstance(key, str) or not self._text.startswith(":", self._position):
                raise self._fault("a key without a value")
            self._position += 1
            self._skip_space()
            if self._text.startswith("[", self._position):
                self._position += 1
                count, self._count = self._count, 0
                while self._go_to_element():
                    yield key, self._decode_element()
                    self._count += 1
                self._position += 1
                self._count += count
            elif isinstance(value := self._decode_element(), dict):
                yield key, value
            self._count += 1
        self._position += 1
        self._skip_space()
        if self._position < len(self._text):
            raise FileError(
                f"{self._path} has text after its first JSON object. If it has one object per line, say --format jsonl;"
                " otherwise give one JSON list of objects."
            )

    def _go_to_element(self, closing: str = "]") -> bool:
        """Move to the next element; return False at the bracket that closes the array or object."""
        self._skip_space()
        if self._count and self._text.startswith(",", self._position):
            self._position += 1
            self._skip_space()
        if self._position == len(self._text):
            raise self._fault("it ends")
        return self._text[self._position] != closing

    def _skip_space(self) -> None:
        """Move to the next character that is not white space, or to the end of the file."""
        while True:
            space = _SPACE.match(self._text, self._position)
            self._position = space.end() if space else self._position
            if self._position < len(self._text) or self._is_all_read:
                return
            self._read_more(0)

    def _decode_element(self) -> object:
        """Return the element at the position, and move the position behind the element.

        An element that reaches the end of the text read so far may be cut off (12 of 123), so more text is read. The
        length is doubled each time, because decoding again for every part of the file would take quadratic time.
        """
        while True:
            try:
                value, end = _DECODER.raw_decode(self._text, self._position)
            except RecursionError:
                raise FileError(f"{self._path} nests JSON lists too deeply to hold dialogues.") from None
            except ValueError as error:
                if self._is_all_read:
                    raise self._fault(first_line(error)) from None
            else:
                if end < len(self._text) or self._is_all_read:
                    self._position = end
                    return value
            length = len(self._text) - self._position
            if length > MAX_ELEMENT_CHARACTERS:
                raise FileError(
                    f"{self._path} has an element of more than {MAX_ELEMENT_CHARACTERS >> 20} million characters after"
                    f" {self._count} dialogues. Give one dialogue per element."
                )
            if has_many_values(self._text[self._position :]):
                raise FileError(
                    f"{self._path} has an element of more than {MAX_VALUES:,} values after {self._count} dialogues. Give one"
                    " dialogue per element."
                )
            self._read_more(2 * length)

    def _read_more(self, characters: int) -> None:
        """Drop the text before the position and read until more than `characters` characters follow it."""
        parts = [self._text[self._position :]]
        length = len(parts[0])
        while length <= characters and not self._is_all_read:
            text = next(self._texts, None)
            self._is_all_read = text is None
            parts.append(text or "")
            length += len(parts[-1])
        self._text, self._position = "".join(parts), 0

    def _fault(self, reason: str) -> FileError:
        return FileError(
            f"{self._path} is not complete JSON ({reason} after {self._count} dialogues). Download it again."
        )


def _integer(digits: str) -> float:
    """Return an integer of any length; Python's own conversion raises an error for very long ones."""
    return int(digits) if len(digits) < 100 else float(digits)


_DECODER = json.JSONDecoder(parse_int=_integer)
