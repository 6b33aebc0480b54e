"""Dialogues on disk: the interchange format, and the prepared set that data_prep writes.

Dialogue JSONL, the interchange format: one JSON list of utterance strings a line, UTF-8, plain, .gz or .xz.

A prepared set is a folder:

    manifest.json   what went in, what was dropped and why, content hashes
    tokenizer.json  the tokenizer (with tokenizer_config.json)
    train/ valid/   `datasets` Arrow, in shards and in random order: `turns` list<list<int32>>, ids without special tokens;
                    `units` int32. Also test/, where files were given for it
    report/         report.md with plots; dropped.jsonl.gz, a line for everything that went

Needs neither torch nor transformers; `datasets` only to open a prepared set.
"""

from __future__ import annotations

import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from chatbot.errors import FileError
from chatbot.text.dialogue import valid_text
from chatbot.text.tokenizer import DialogueTokenizer

if TYPE_CHECKING:
    pass
from chatbot.text.prepared_set import is_prepared_set, load_split

DIALOGUE_SUFFIXES = (".jsonl", ".jsonl.gz", ".jsonl.xz")


def open_text(path: Path) -> TextIO:
    """Opens a UTF-8 text file, plain, gzip or xz by its first bytes; a byte order mark is skipped.

    Raises:
        FileError: The file is missing, a folder, empty or not to be read.
    """
    try:
        with path.open("rb") as file:
            magic = file.read(6)
    except OSError as error:
        raise FileError(f"{path} cannot be read: {error.strerror}; check the path.") from None
    if not magic:
        raise FileError(f"{path} is empty; give a file with dialogues in it.")
    if magic.startswith(b"\x1f\x8b"):
        binary = gzip.open(path, "rb")
    elif magic.startswith(b"\xfd7zXZ"):
        binary = lzma.open(path, "rb")
    else:
        binary = path.open("rb")
    return io.TextIOWrapper(binary, encoding="utf-8-sig", errors="strict", newline=None)


def read_lines(path: Path) -> Iterator[str]:
    """Lines of `open_text`, with what can go wrong on the way explained.

    Raises:
        FileError: The file is cut short, damaged or not UTF-8.
    """
    try:
        with open_text(path) as file:
            yield from file
    except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
        raise FileError(f"{path} is cut short or damaged ({error}); fetch or pack it again.") from None
    except UnicodeDecodeError as error:
        found = f"byte 0x{error.object[error.start]:02X}" if isinstance(error.object, bytes) else "a wrong byte"
        raise FileError(f"{path} is not UTF-8 ({found} found); convert it, for example with iconv.") from None


def parse_dialogue(line: str) -> list[str] | None:
    """The utterances of one JSONL line, or None when it is no list of strings."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
        return [valid_text(turn) for turn in value]
    return None


def read_dialogues(path: str | Path, split: str = "valid") -> Iterator[list[str]]:
    """Dialogues of a JSONL file, of all JSONL files in a folder, or of a prepared set's split, in a fixed order.

    Raises:
        FileError: Nothing can be read, or a line is not a list of strings.
    """
    path = Path(path)
    if is_prepared_set(path):
        tokenizer = DialogueTokenizer.load(path)
        for turns in load_split(path, split)["turns"]:
            yield [tokenizer.decode(ids) for ids in turns]
        return
    if path.is_dir():
        files = sorted(file for file in path.rglob("*") if file.name.endswith(DIALOGUE_SUFFIXES))
        if not files:
            raise FileError(f"{path} holds no .jsonl file and is no prepared set; give dialogues as JSONL.")
    else:
        files = [path]
    for file in files:
        for number, line in enumerate(read_lines(file), 1):
            if line.strip():
                dialogue = parse_dialogue(line)
                if dialogue is None:
                    raise FileError(
                        f"{file} line {number} is no JSON list of strings; give the set that xianliao-prepare makes of it."
                    )
                yield dialogue
