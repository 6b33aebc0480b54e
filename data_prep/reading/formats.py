"""Reading dialogues in the file formats that people have; the format is detected from the content.

| form | looks like |
|---|---|
| array | `[["你 好", "你 好 呀"], …]`: LCCC as downloaded, one JSON array; also of objects or of the messages of one chat |
| jsonl | `["你好", "你好呀"]` on each line: LCCC on the hub, our interchange format; also an object on each line |
| messages | `{"sender": "小海", "content": "你好"}` on each line: one message |
| object | one JSON object: `{"train": […], "valid": […]}` of CDial-GPT, `{"messages": […]}` of Telegram and Discord |
| table | CSV with a header that is known (`data_prep.reading.tables`), or two columns; also `问 | 答` |
| tsv | `你好<TAB>你好呀` on each line |
| labelled | `A：你好` and other texts that name the speakers (`data_prep.reading.labelled.labelled_text`) |
| chatlog | an export of WeChat, QQ or WhatsApp: `name time` or `time name`, then the message, also on the next lines |
| text | one turn per line, a blank line between dialogues |

`data_prep.reading.json_shapes` lists the shapes of JSON values. An object with `"rating": "dislike"`, feedback from the
page, is left out. Where speakers are named, consecutive messages of one speaker become one turn.

Files are read in one pass, in blocks of bounded size, so that they may be larger than memory. Records that cannot be
read are counted by reason and skipped; a file of another form is refused.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import AnyStr

from chatbot.errors import FileError
from chatbot.text.packed_files import MAX_LINE_BYTES, PackedFile, decode_line
from data_prep.reading.chat_logs import read_chat_log
from data_prep.reading.json_array import read_array, read_arrays_of_object
from data_prep.reading.json_records import message_lines, parse_json, read_members, read_values
from data_prep.reading.json_shapes import SPLITS
from data_prep.reading.labelled.labelled_text import read_labelled, recognise_labels
from data_prep.reading.labelled.prefixes import unlabelled
from data_prep.reading.messages import to_dialogues
from data_prep.reading.recognition import HEAD_BYTES, head_lines, recognise
from data_prep.reading.records import (
    LEFT_OUT,
    LONG_LINE,
    MANY_CELLS,
    MAX_TURNS,
    NOT_TEXT,
    NumberedLine,
    Record,
    read_text,
)
from data_prep.reading.tables import delimiter_of, read_table
from data_prep.reading.thoughts import join_thoughts, without_thoughts

NEGATIVE = "negative_example"
"""Reason for a row whose last column is the reply to something else, as in the Douban corpus."""
BLOCK_BYTES = 8 << 20
MAX_SKIPPED_BYTES = 256 << 20
"""A line longer than `MAX_LINE_BYTES` is skipped; a line longer than this stops the build."""


@dataclass(frozen=True)
class Block:
    """Part of a file that holds whole records.

    Attributes:
        first: Number of its first line.
        form: Form of the records in `lines`; None if the records have been read already.
        lines: Bytes of the lines.
        records: The records that have been read.
    """

    first: int
    form: str | None = None
    lines: bytes = b""
    records: tuple[Record, ...] = ()


def read_blocks(
    file: PackedFile,
    form: str = "auto",
    block_bytes: int = BLOCK_BYTES,
    part: str | None = None,
    bot: str | None = None,
) -> Iterator[Block]:
    """Yield the blocks of a file, in order.

    Args:
        file: The file.
        form: One of `data_prep.settings.FORMS`, or `auto`.
        block_bytes: Approximate size of a block.
        part: Key of `splits_of` to read from a file with splits; None reads all of them.
        bot: Name of the speaker whose turns come second, see `data_prep.reading.messages.to_dialogues`; None keeps all.

    Raises:
        FileError: The file cannot be read, is empty or has an unknown form.
    """
    chunks = file.chunks()
    head = _read_head(chunks, file.path)
    text = _decode_head(head)
    if form == "auto":
        form = recognise(text, file.path)
    chunks = chain([head], chunks)
    if bot is not None and form in ("jsonl", "tsv", "text"):
        raise FileError(f"{file.path} does not name the speakers, so --bot cannot choose one. Give a chat with names.")
    if form in ("jsonl", "tsv"):
        yield from _line_blocks(chunks, form, block_bytes, file.path)
    elif form == "array":
        yield from _record_blocks(
            read_values(read_array(_decode_all(chunks, head, file.path), file.path), bot), block_bytes
        )
    elif form == "object":
        members = read_arrays_of_object(_decode_all(chunks, head, file.path), file.path)
        yield from _record_blocks(read_members(members, part, bot, file.path), block_bytes)
    else:
        numbered = _numbered_lines(chunks, file.path)
        yield from _record_blocks(_read_lines(numbered, form, head_lines(text), bot, file.path), block_bytes)


def _read_lines(
    lines: Iterable[NumberedLine], form: str, head: list[str], bot: str | None, path: Path
) -> Iterator[Record]:
    """Yield the records of a form that is read line by line."""
    if form in ("labelled", "text"):
        lines = join_thoughts(lines, path)
    if form == "chatlog":
        return read_chat_log(lines, bot)
    if form == "labelled":
        return read_labelled(lines, recognise_labels(head) or "prefix", bot)
    if form == "table":
        return read_table(lines, delimiter_of(head) or ",", path, bot)
    if form == "messages":
        return to_dialogues(message_lines(lines), bot)
    return read_text(lines)


def splits_of(path: Path, form: str = "auto") -> tuple[str, ...]:
    """Return the keys train, valid and test of a file that is one JSON object of splits; empty for any other file.

    Raises:
        FileError: The file cannot be read.
    """
    chunks = PackedFile(path).chunks()
    head = _read_head(chunks, path)
    text = _decode_head(head)
    start = text.lstrip("\ufeff\0 \t\r\n")[:40]
    if form not in ("auto", "object") or not start.startswith("{") or not any(f'"{key}"' in start for key in SPLITS):
        return ()
    if form == "auto" and recognise(text, path) != "object":
        return ()
    members = read_arrays_of_object(_decode_all(chain([head], chunks), head, path), path)
    keys = dict.fromkeys(key for key, _ in members)
    return tuple(key for key in SPLITS if key in keys)


def check_text(path: Path) -> None:
    """Check that a file begins with text.

    Raises:
        FileError: The file cannot be read, is empty or is not text.
    """
    _read_head(PackedFile(path).chunks(), path)


def form_of(path: Path, form: str = "auto") -> str:
    """Return the form in which a file is read: the given form, or with `auto` the form that is recognised.

    Raises:
        FileError: The file cannot be read, is empty or has an unknown form.
    """
    return recognise(_decode_head(_read_head(PackedFile(path).chunks(), path)), path) if form == "auto" else form


def left_out(block: Block) -> Iterator[tuple[int, str, str]]:
    """Yield number, text and reason of each message that reading leaves out, such as a notice or a picture."""
    for number, turns, reason in block.records:
        if reason in LEFT_OUT and turns is not None:
            yield number, turns[0], reason


def records(block: Block) -> Iterator[Record]:
    """Yield the records of a block, in order, without those of `left_out`."""
    if block.form is None:
        yield from (record for record in block.records if record.reason not in LEFT_OUT)
        return
    for number, line in enumerate(_split_lines(block.lines), block.first):
        if line is None:
            yield Record(number, None, NOT_TEXT)
            continue
        line = line.lstrip("\ufeff")  # files were joined, and another one begins here
        if not line.strip(" \t\r\n\0"):
            continue
        if len(line) > MAX_LINE_BYTES:
            yield Record(number, None, LONG_LINE)
        elif block.form == "tsv" and line.count("\t") >= MAX_TURNS:
            yield Record(number, None, MANY_CELLS)
        elif block.form == "tsv":
            yield _tsv_record(number, line.rstrip("\r\n").split("\t"))
        else:
            yield parse_json(number, line)


def _tsv_record(number: int, turns: list[str]) -> Record:
    """Return the record of a row. A first column of 0 or 1 before the turns says whether the last one is a reply."""
    turns = unlabelled([without_thoughts(turn) for turn in turns])
    if len(turns) > 2 and turns[0] in ("0", "1"):
        return Record(number, turns[1:], None) if turns[0] == "1" else Record(number, None, NEGATIVE)
    return Record(number, turns, None)


# --- the beginning of a file ---


def _read_head(chunks: Iterable[bytes], path: Path) -> bytes:
    """Return the beginning of a file: at least `HEAD_BYTES`, or the whole file if it is shorter.

    The head of a file that begins with a JSON object has the whole first line, up to `MAX_LINE_BYTES`: only the end of
    that line shows whether the file is one object or has an object on each line.

    Raises:
        FileError: The file holds only white space, or begins with more white space than is read.
    """
    head, is_blank, is_whole = bytearray(), True, False
    for chunk in chunks:
        start = len(head)
        head += chunk
        is_blank = is_blank and not chunk.strip()
        if is_blank and len(head) > MAX_LINE_BYTES:
            raise FileError(f"{path} begins with more than {MAX_LINE_BYTES >> 20} MB of white space. Check the file.")
        if is_blank or len(head) < HEAD_BYTES:
            continue
        is_whole = is_whole or b"\n" in (chunk if start >= HEAD_BYTES else head.lstrip(_BEFORE))
        if is_whole or len(head) > MAX_LINE_BYTES or not head[:HEAD_BYTES].lstrip(_BEFORE).startswith(b"{"):
            break
    if is_blank:
        raise FileError(f"{path} is empty. Give a file with dialogues.")
    return bytes(head)


_BEFORE = b"\xef\xbb\xbf\0 \t\r\n"
"""Bytes of a byte order mark and of white space."""


def _decode_head(head: bytes) -> str:
    text = ""
    for encoding in ("utf-8", "gb18030"):
        text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)  # the last character may be cut
        if "\ufffd" not in text:
            break
    return text


# --- lines and blocks ---


def _split_lines(data: bytes) -> Iterator[str | None]:
    """Yield the lines of a block; None for a line that is not text.

    The lines are cut one by one, because a list of short lines needs twenty times the memory of the block.
    """
    try:
        text = data.decode()
    except UnicodeDecodeError:
        yield from (decode_line(data[start:end]) for start, end in _line_bounds(data, b"\n"))
    else:
        yield from (text[start:end] for start, end in _line_bounds(text, "\n"))


def _line_bounds(data: AnyStr, line_end: AnyStr) -> Iterator[tuple[int, int]]:
    """Yield the beginning and the end of each line, as `data.split(line_end)` cuts them."""
    start = 0
    while (end := data.find(line_end, start)) >= 0:
        yield start, end
        start = end + 1
    yield start, len(data)


def _line_blocks(chunks: Iterable[bytes], form: str, block_bytes: int, path: Path) -> Iterator[Block]:
    """Yield blocks of whole lines; a line longer than `MAX_LINE_BYTES` becomes a record without turns."""
    held, number = bytearray(), 1
    skipped = 0  # bytes of a long line that have been thrown away
    for chunk in chunks:
        if skipped:
            end = chunk.find(b"\n")
            if end < 0:
                skipped += len(chunk)
                if skipped > MAX_SKIPPED_BYTES:
                    limit = f"{MAX_SKIPPED_BYTES >> 20} MB"
                    raise FileError(f"{path} has a line of more than {limit}. Give a file with one dialogue per line.")
                continue
            chunk, skipped = chunk[end + 1 :], 0
            number += 1
        held += chunk
        if len(held) < block_bytes:
            continue
        end = held.rfind(b"\n") + 1
        if end:
            yield Block(number, form, bytes(held[: end - 1]))
            number += held.count(b"\n", 0, end)
            del held[:end]
        if len(held) > MAX_LINE_BYTES:
            yield Block(number, records=(Record(number, None, LONG_LINE),))
            skipped = len(held)
            held.clear()
    if held.strip():
        yield Block(number, form, bytes(held))


def _numbered_lines(chunks: Iterable[bytes], path: Path) -> Iterator[NumberedLine]:
    for block in _line_blocks(chunks, "text", BLOCK_BYTES, path):
        if block.form is None:  # a line that is too long
            yield block.first, None
        else:
            for number, line in enumerate(_split_lines(block.lines), block.first):
                if line is not None and line.startswith("\ufeff"):  # another file begins, and another dialogue
                    yield number, ""
                    line = line.removeprefix("\ufeff")
                yield number, line


def _record_blocks(all_records: Iterable[Record], block_bytes: int) -> Iterator[Block]:
    """Yield blocks of records, of about `block_bytes` each: 3 bytes per Chinese character, 64 per turn and 64 per record."""
    block: list[Record] = []
    size = 0
    for record in all_records:
        block.append(record)
        size += 3 * sum(map(len, record.turns or ())) + 64 * (1 + len(record.turns or ()))
        if size >= block_bytes:
            yield Block(block[0].number, records=tuple(block))
            block, size = [], 0
    if block:
        yield Block(block[0].number, records=tuple(block))


def _decode_all(chunks: Iterable[bytes], head: bytes, path: Path) -> Iterator[str]:
    """Yield the text of a file that is not read line by line, in the encoding recognised at its beginning."""
    try:
        codecs.getincrementaldecoder("utf-8")().decode(head)
        encoding = "utf-8"
    except UnicodeDecodeError:
        encoding = "gb18030"
    decoder = codecs.getincrementaldecoder(encoding)()
    try:
        for chunk in chunks:
            yield decoder.decode(chunk)
        yield decoder.decode(b"", final=True)
    except UnicodeDecodeError as error:
        byte = f"byte 0x{error.object[error.start]:02X}"
        raise FileError(f"{path} is neither UTF-8 nor GB18030 throughout ({byte}). Convert it to UTF-8.") from None
