"""Reading dialogues in the forms people have them; the form is recognised from the content.

| form | looks like |
|---|---|
| array | `[["你 好", "你 好 呀"], …]`: LCCC as downloaded, one JSON array; also of objects |
| jsonl | `["你好", "你好呀"]` a line: LCCC on the hub, our interchange format; also an object a line |
| tsv | `你好<TAB>你好呀` a line |
| text | a turn a line, an empty line between dialogues |
| chatlog | an export of WeChat or QQ: `name time` or `time name` a line, then what was said, there or on the next lines |

A JSON object is `{"dialog": […]}` (also dialogue, turns, utterances), `{"messages": [{"role", "content"}]}` or ShareGPT's
`{"conversations": [{"from", "value"}]}`; or a question and its answer, as Alpaca's `{"instruction", "input", "output",
"history"}`. One with `"rating": "dislike"`, feedback from the page, is left out. Where speakers are named, what one of them
says in a row is one turn.

Files are read in one pass, in blocks of bounded size, so that they may be larger than memory. Records that cannot be
read are counted, not fatal: see the reasons below.
"""

from __future__ import annotations

import codecs
import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

from chatbot.errors import FileError, first_line
from chatbot.text.dialogue import valid_text
from data_prep.reading.files import Reader
from data_prep.reading.records import HEADER, NOT_TEXT, Record, read_chatlog, read_text, to_turns

FORMS = ("array", "jsonl", "tsv", "text", "chatlog")
NOT_JSON, NOT_A_DIALOGUE, LONG_LINE = "not_json", "not_a_list_of_strings", "line_too_long"
DISLIKED = "disliked"
BLOCK_BYTES = 8 << 20
MOST_LINE_BYTES = 16 << 20
"""A longer line is no dialogue; nor is an element of a JSON array that is longer in characters."""


@dataclass(frozen=True)
class Block:
    """A part of a file that holds whole records.

    Attributes:
        first: Number of its first line.
        form: How `lines` are to be read; None where the records have been read already.
        lines: The bytes.
        records: The records.
    """

    first: int
    form: str | None = None
    lines: bytes = b""
    records: tuple[Record, ...] = ()


def read_blocks(reader: Reader, form: str = "auto", block_bytes: int = BLOCK_BYTES) -> Iterator[Block]:
    """The blocks of a file, in order.

    Args:
        reader: The file.
        form: One of `FORMS`, or `auto`.
        block_bytes: About how large a block is.

    Raises:
        FileError: The file cannot be read, is empty or has another shape.
    """
    chunks = reader.chunks()
    head = b""
    for chunk in chunks:
        head += chunk
        if len(head) >= 1 << 16 and head.strip():
            break
    if not head.strip():
        raise FileError(f"{reader.path} is empty; give a file with dialogues in it.")
    form = recognise(_head_text(head), reader.path) if form == "auto" else form
    chunks = chain([head], chunks)
    if form in ("jsonl", "tsv"):
        yield from _line_blocks(chunks, form, block_bytes)
    elif form == "array":
        yield from _record_blocks(_read_array(_decoded(chunks, head, reader.path), reader.path), block_bytes)
    else:
        read = read_chatlog if form == "chatlog" else read_text
        yield from _record_blocks(read(_numbered_lines(chunks)), block_bytes)


def records(block: Block) -> Iterator[Record]:
    """The records of a block, in order."""
    if block.form is None:
        yield from block.records
        return
    for number, line in enumerate(_split_lines(block.lines), block.first):
        if line is None:
            yield number, None, NOT_TEXT
        elif not line.strip("\ufeff \t\r\n\0"):
            continue
        elif len(line) > MOST_LINE_BYTES:
            yield number, None, LONG_LINE
        elif block.form == "tsv":
            yield number, line.rstrip("\r\n").split("\t"), None
        else:
            yield number, *_read_json(line)


def read_records(path: Path, form: str = "auto") -> Iterator[Record]:
    """All records of a file; see `read_blocks`."""
    for block in read_blocks(Reader(path), form):
        yield from records(block)


def recognise(head: str, path: Path) -> str:
    """The form of a file, from the text it begins with.

    Raises:
        FileError: It is JSON of a shape that holds no dialogues.
    """
    head = head.lstrip("\ufeff\0 \t\r\n")
    line = head.split("\n", 1)[0]
    start = "".join(head[:200].split())
    if start.startswith(("[[", "[{")) and not (start.startswith("[{") and _is_json(line) and "\n[" in head):
        return "array"
    if line.strip() == "[":
        if start.startswith('["'):  # one list of strings over several lines is no array of dialogues
            raise FileError(f"{path} is one JSON list of strings; give a list of lists, or one list a line.")
        return "array"
    if start.startswith('["') or (start.startswith("[") and _is_json(line)):
        return "jsonl"
    lines = [line for line in head.split("\n")[:-1][:200] or [head] if line.strip()]
    as_json = sum(line.lstrip().startswith(("[", "{")) and _is_json(line) for line in lines[:20])
    if as_json and 2 * as_json >= len(lines[1:20]):  # the first line may be cut or a remark
        return "jsonl"
    if start.startswith("{"):
        if len(line) > 1 << 15:
            return "jsonl"
        raise FileError(f"{path} is one JSON object; give a JSON list of dialogues, or one dialogue a line.")
    headers = [number for number, line in enumerate(lines) if HEADER.fullmatch(line)]
    if len(headers) > 1 and headers[0] < 5 and len(headers) * 20 >= len(lines):
        return "chatlog"
    return "tsv" if 2 * sum("\t" in line for line in lines) > len(lines) else "text"


def _read_json(line: str) -> tuple[list[str] | None, str | None]:
    try:
        return _judged(json.loads(line))
    except (ValueError, RecursionError):
        return None, NOT_JSON


def _judged(value: object) -> tuple[list[str] | None, str | None]:
    """The turns of a JSON record, or why there are none; a page's feedback says whether its last reply was liked."""
    if isinstance(value, dict) and value.get("rating") == "dislike":
        return None, DISLIKED
    turns = to_turns(value)
    return (turns, None) if turns is not None else (None, NOT_A_DIALOGUE)


def _is_json(line: str) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


def _head_text(head: bytes) -> str:
    for encoding in ("utf-8", "gb18030"):
        text = codecs.getincrementaldecoder(encoding)(errors="replace").decode(head)  # the last character may be cut
        if "\ufffd" not in text:
            break
    return text


def _decode_line(line: bytes) -> str | None:
    """UTF-8, else GB18030; lone surrogates, which some programs write, as U+FFFD; None is neither."""
    try:
        return line.decode()
    except UnicodeDecodeError:
        pass
    for encoding, errors in (("utf-8", "surrogatepass"), ("gb18030", "strict")):
        try:
            return valid_text(line.decode(encoding, errors))
        except UnicodeDecodeError:
            continue
    return None


def _split_lines(data: bytes) -> Iterator[str | None]:
    try:
        yield from data.decode().split("\n")
    except UnicodeDecodeError:
        yield from map(_decode_line, data.split(b"\n"))


def _line_blocks(chunks: Iterable[bytes], form: str, block_bytes: int) -> Iterator[Block]:
    """Blocks of whole lines; what is more than `MOST_LINE_BYTES` without a line's end is thrown away as it comes."""
    held, number, skipping = bytearray(), 1, False
    for chunk in chunks:
        if skipping:
            end = chunk.find(b"\n")
            if end < 0:
                continue
            chunk, skipping = chunk[end + 1 :], False
            number += 1
        held += chunk
        if len(held) < block_bytes:
            continue
        end = held.rfind(b"\n") + 1
        if end:
            yield Block(number, form, bytes(held[: end - 1]))
            number += held.count(b"\n", 0, end)
            del held[:end]
        if len(held) > MOST_LINE_BYTES:
            yield Block(number, records=((number, None, LONG_LINE),))
            held.clear()
            skipping = True
    if held.strip():
        yield Block(number, form, bytes(held))


def _record_blocks(found: Iterable[Record], block_bytes: int) -> Iterator[Block]:
    block: list[Record] = []
    size = 0
    for record in found:
        block.append(record)
        size += 3 * sum(map(len, record[1] or ())) + 64
        if size >= block_bytes:
            yield Block(block[0][0], records=tuple(block))
            block, size = [], 0
    if block:
        yield Block(block[0][0], records=tuple(block))


def _decoded(chunks: Iterable[bytes], head: bytes, path: Path) -> Iterator[str]:
    """Text of a file whose lines say nothing, in the encoding that its head fits."""
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
        found = f"byte 0x{error.object[error.start]:02X}"
        raise FileError(f"{path} is neither UTF-8 nor GB18030 throughout ({found} found); convert it first.") from None


def _read_array(texts: Iterator[str], path: Path) -> Iterator[Record]:
    """Elements of one JSON array, one after the other, without holding the array."""
    decode = json.JSONDecoder().raw_decode
    space = re.compile(r"[\s\0]*")
    held = next(texts).lstrip("\ufeff\0 \t\r\n")[1:]
    at = number = wanted = 0
    is_done = False

    def fault(reason: str) -> FileError:
        return FileError(f"{path} is not complete JSON ({reason} after {number} dialogues); fetch it again.")

    while True:
        at = space.match(held, at).end()
        if held.startswith(",", at) and number:
            at = space.match(held, at + 1).end()
        is_last = False
        if held.startswith("]", at):
            is_last = True
        elif at < len(held):
            try:
                value, end = decode(held, at)
                if end == len(held) and not is_done:
                    raise ValueError("perhaps not all of it")
            except RecursionError:
                raise FileError(f"{path} nests JSON lists too deeply to hold dialogues.") from None
            except ValueError as error:
                if is_done:
                    raise fault(first_line(error)) from None
                if len(held) - at > MOST_LINE_BYTES:
                    raise FileError(
                        f"{path} has an element of more than {MOST_LINE_BYTES >> 20} million characters after {number}"
                        " dialogues; give one dialogue an element."
                    ) from None
                wanted = 2 * (len(held) - at)  # reading it again for every chunk would take quadratic time
            else:
                number += 1
                yield number, *_judged(value)
                at = end
                continue
        elif is_done:
            raise fault("it ends")
        if is_last:
            if held[at + 1 :].strip("\0 \t\r\n") or any(text.strip("\0 \t\r\n") for text in texts):
                raise fault("text follows the array")
            return
        more = [held[at:]]
        while not is_done and sum(map(len, more)) <= wanted:
            text = next(texts, None)
            is_done = text is None
            more.append(text or "")
        held, at, wanted = "".join(more), 0, 0


def _numbered_lines(chunks: Iterable[bytes]) -> Iterator[tuple[int, str | None]]:
    for block in _line_blocks(chunks, "text", BLOCK_BYTES):
        if block.form is None:
            yield block.first, None
        else:
            yield from enumerate(_split_lines(block.lines), block.first)
