"""Dialogues on disk: the interchange format, and the prepared sets that data_prep writes.

Dialogue JSONL, the interchange format, holds one JSON list of utterances per line. Files are plain or compressed
(.gz, .bz2, .xz, .zst), in UTF-8, GB18030 or UTF-16.

A prepared set is a folder:

    manifest.json   inputs, numbers of dropped dialogues by reason, content hashes
    tokenizer.json  the tokenizer (with tokenizer_config.json)
    train/ valid/   `datasets` Arrow, in shards and in random order: `turns` list<list<int32>>, ids without special
                    tokens; `units` int32. Also test/, if files were given for it
    report/         report.md with plots; dropped.jsonl.gz, one line for every removed turn and dialogue

Needs neither torch nor transformers; `datasets` only to open a prepared set.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from chatbot.errors import FileError
from chatbot.storage import files_within
from chatbot.text.dialogue import valid_text
from chatbot.text.packed_files import PACKED_SUFFIXES, read_lines
from chatbot.text.prepared_set import is_prepared_set, load_split
from chatbot.text.tokenizer import DialogueTokenizer

DIALOGUE_SUFFIXES = (".jsonl", *(f".jsonl{suffix}" for suffix in PACKED_SUFFIXES))


def parse_dialogue(line: str) -> list[str] | None:
    """Return the utterances of one JSONL line, or None if it is not a list of strings."""
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if isinstance(value, list) and all(isinstance(turn, str) for turn in value):
        return [valid_text(turn) for turn in value]
    return None


def read_dialogues(path: str | Path, split: str = "valid") -> Iterator[list[str]]:
    """Yield the dialogues of a JSONL file, of all JSONL files in a folder, or of a prepared set, in a fixed order.

    Args:
        path: File or folder.
        split: Split to read if `path` is a prepared set.

    Raises:
        FileError: A file cannot be read, the folder holds no dialogues, or a line is not a list of strings.
    """
    path = Path(path)
    if is_prepared_set(path):
        tokenizer = DialogueTokenizer.load(path)
        for turns in load_split(path, split)["turns"]:
            yield [tokenizer.decode(ids) for ids in turns]
        return
    for file in dialogue_files(path):
        for number, line in enumerate(read_lines(file), 1):
            if line.strip():
                dialogue = parse_dialogue(line)
                if dialogue is None:
                    raise FileError(
                        f"Line {number} of {file} is not a JSON list of strings."
                        " Convert the file with xianliao-prepare and give the set it writes."
                    )
                yield dialogue


def dialogue_files(path: Path) -> list[Path]:
    """Return a file itself, or the JSONL files of a folder in a fixed order.

    Raises:
        FileError: The folder has no JSONL file, or a link to one outside the folder.
    """
    if not path.is_dir():
        return [path]
    files = files_within(path, DIALOGUE_SUFFIXES)
    if not files:
        raise FileError(f"{path} is not a prepared set and holds no .jsonl file. Give dialogues as JSONL.")
    return files
