"""Reading dialogues in the forms people have them; the form is detected from the content.

| form | looks like |
|---|---|
| array | `[["你 好", "你 好 呀"], …]`: LCCC as downloaded, one JSON array; also of objects |
| jsonl | `["你好", "你好呀"]` on each line: LCCC on the hub, our interchange format; also an object on each line |
| tsv | `你好<TAB>你好呀` on each line |
| text | one turn per line, a blank line between dialogues |
| chatlog | an export of WeChat or QQ: `name time` or `time name`, then the message, on the same line or the next ones |

A JSON object is `{"dialog": […]}` (also dialogue, turns, utterances), `{"messages": [{"role", "content"}]}` or
ShareGPT's `{"conversations": [{"from", "value"}]}`; or a question and its answer, as Alpaca's `{"instruction", "input",
"output", "history"}`. An object with `"rating": "dislike"`, feedback from the page, is left out. Where speakers are
named, consecutive messages of one speaker become one turn.

Files are read in one pass, in blocks of bounded size, so that they may be larger than memory. Records that cannot be
read are counted by reason and skipped.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from chatbot.errors import FileError
from chatbot.text.packed_files import MAX_LINE_BYTES, PackedFile, decode_line
from data_prep.reading.chat_logs import parse_header, read_chat_log
from data_prep.reading.json_array import read_array
from data_prep.reading.records import LONG_LINE, NOT_TEXT, NumberedLine, Record, read_text, to_turns

NOT_JSON, NOT_A_DIALOGUE, DISLIKED = "not_json", "not_a_list_of_strings", "disliked"
BLOCK_BYTES = 8 << 20
HEAD_BYTES = 1 << 16
"""Part of a file from which its form is recognised; white space before it does not count."""
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


def read_blocks(file: PackedFile, form: str = "auto", block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """Yield the blocks of a file, in order.

    Args:
        file: The file.
        form: One of `data_prep.settings.FORMS`, or `auto`.
        block_bytes: Approximate size of a block.

    Raises:
        FileError: The file cannot be read, is empty or has an unknown form.
    """
    chunks = file.chunks()
    head = _read_head(chunks, file.path)
    if form == "auto":
        form = recognise(_decode_head(head), file.path)
    chunks = chain([head], chunks)
    if form in ("jsonl", "tsv"):
        yield from _line_blocks(chunks, form, block_bytes, file.path)
    elif form == "array":
        elements = enumerate(read_array(_decode_all(chunks, head, file.path), file.path), 1)
        yield from _record_blocks((_to_record(number, value) for number, value in elements), block_bytes)
    else:
        read = read_chat_log if form == "chatlog" else read_text
        yield from _record_blocks(read(_numbered_lines(chunks, file.path)), block_bytes)


def records(block: Block) -> Iterator[Record]:
    """Yield the records of a block, in order."""
    if block.form is None:
        yield from block.records
        return
    for number, line in enumerate(_split_lines(block.lines), block.first):
        if line is None:
            yield Record(number, None, NOT_TEXT)
        elif not line.strip("\ufeff \t\r\n\0"):
            continue
        elif len(line) > MAX_LINE_BYTES:
            yield Record(number, None, LONG_LINE)
        elif block.form == "tsv":
            yield Record(number, line.rstrip("\r\n").split("\t"), None)
        else:
            yield _parse_json(number, line)


def read_records(path: Path, form: str = "auto") -> Iterator[Record]:
    """Yield all records of a file; see `read_blocks`."""
    for block in read_blocks(PackedFile(path), form):
        yield from records(block)


# --- recognising the form ---


def recognise(head: str, path: Path) -> str:
    """Return the form of a file.

    Args:
        head: Text that the file begins with.
        path: The file, for error messages.

    Raises:
        FileError: The file is JSON that holds no dialogues.
    """
    head = head.lstrip("\ufeff\0 \t\r\n")
    line = head.split("\n", 1)[0]
    start = "".join(head[:200].split())
    if start.startswith(("[[", "[{")) and not (start.startswith("[{") and _is_json(line) and "\n[" in head):
        return "array"
    if line.strip() == "[":
        if start.startswith('["'):  # one list of strings on several lines is not an array of dialogues
            raise FileError(f"{path} is one JSON list of strings. Give a list of lists, or one list per line.")
        return "array"
    if start.startswith('["') or (start.startswith("[") and _is_json(line)):
        return "jsonl"
    lines = [line for line in head.split("\n")[:-1][:200] or [head] if line.strip()]
    json_lines = sum(line.lstrip().startswith(("[", "{")) and _is_json(line) for line in lines[:20])
    if json_lines and 2 * json_lines >= len(lines[1:20]):  # the first line may be cut or a remark
        return "jsonl"
    if start.startswith("{"):
        if len(line) > HEAD_BYTES // 2:
            return "jsonl"
        raise FileError(f"{path} is one JSON object. Give a JSON list of dialogues, or one dialogue per line.")
    headers = [number for number, line in enumerate(lines) if parse_header(line)]
    if len(headers) > 1 and headers[0] < 5 and len(headers) * 20 >= len(lines):
        return "chatlog"
    return "tsv" if 2 * sum("\t" in line for line in lines) > len(lines) else "text"


def _read_head(chunks: Iterable[bytes], path: Path) -> bytes:
    """Return the beginning of a file, `HEAD_BYTES` or more if the file has so many.

    Raises:
        FileError: The file holds only white space, or begins with too much of it.
    """
    head, is_blank = bytearray(), True
    for chunk in chunks:
        head += chunk
        is_blank = is_blank and not chunk.strip()
        if is_blank and len(head) > MAX_LINE_BYTES:
            raise FileError(f"{path} begins with more than {MAX_LINE_BYTES >> 20} MB of white space. Check the file.")
        if not is_blank and len(head) >= HEAD_BYTES:
            break
    if is_blank:
        raise FileError(f"{path} is empty. Give a file with dialogues.")
    return bytes(head)


def _decode_head(head: bytes) -> str:
    text = ""
    for encoding in ("utf-8", "gb18030"):
        text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)  # the last character may be cut
        if "\ufffd" not in text:
            break
    return text


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


# --- records ---


def _parse_json(number: int, line: str) -> Record:
    try:
        return _to_record(number, json.loads(line))
    except (ValueError, RecursionError):
        return Record(number, None, NOT_JSON)


def _to_record(number: int, value: object) -> Record:
    """Return the record that a JSON value holds; feedback from the page says whether its last reply was liked."""
    if isinstance(value, dict) and value.get("rating") == "dislike":
        return Record(number, None, DISLIKED)
    turns = to_turns(value)
    return Record(number, turns, NOT_A_DIALOGUE if turns is None else None)


# --- lines and blocks ---


def _split_lines(data: bytes) -> Iterator[str | None]:
    """Yield the lines of a block; None for a line that is not text."""
    try:
        yield from data.decode().split("\n")
    except UnicodeDecodeError:
        yield from map(decode_line, data.split(b"\n"))


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
            yield from enumerate(_split_lines(block.lines), block.first)


def _record_blocks(all_records: Iterable[Record], block_bytes: int) -> Iterator[Block]:
    """Yield blocks of records, of about `block_bytes` each: 3 bytes per Chinese character and 64 per record."""
    block: list[Record] = []
    size = 0
    for record in all_records:
        block.append(record)
        size += 3 * sum(map(len, record.turns or ())) + 64
        if size >= block_bytes:
            yield Block(block[0].number, records=tuple(block))
            block, size = [], 0
    if block:
        yield Block(block[0].number, records=tuple(block))


def _decode_all(chunks: Iterable[bytes], head: bytes, path: Path) -> Iterator[str]:
    """Yield the text of a file that is not read by lines, in the encoding that its head has."""
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
