"""Fingerprint of a prepared set: a hash of everything that decides its content."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import chatbot.text
from chatbot.checkpoint.location import locate
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.reading.files import sha256_of
from data_prep.settings import PrepareSettings
from data_prep.stages.assemble import Input, tokenizer_hash

_OURS = ("pipeline.py", "settings.py", "reading/*.py", "cleaning/*.py", "cleaning/*.txt", "corpus/*.py", "stages/*.py")
_TEXT = ("characters.py", "dialogue.py", "packed_files.py", "tokenizer*.py", "word_lists.py", "wordpiece.py")


def fingerprint_of(files: Sequence[Input], settings: PrepareSettings) -> str:
    """Return the hash of files, settings, tokenizer, word list and the rules of this program, 16 hexadecimal digits."""
    parts = [f"{file.split} {file.name} {file.sha256} {file.part or ''}" for file in files]
    parts += [json.dumps(asdict(settings), sort_keys=True), program_hash()]
    if settings.clean.words is not None:
        parts.append(sha256_of(Path(settings.clean.words)))
    if settings.tokenizer is not None:
        parts.append(tokenizer_hash(DialogueTokenizer.load(locate(settings.tokenizer))))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def changed_settings(before: object, settings: PrepareSettings) -> list[str]:
    """Return the flags of the settings that differ from those in a manifest; an empty list if the manifest has none."""
    if not isinstance(before, dict):
        return []
    then, now = dict(_leaves(before)), dict(_leaves(json.loads(json.dumps(asdict(settings)))))
    names = [name for name, value in now.items() if name in then and then[name] != value]
    return ["--" + {"form": "format"}.get(name, name).replace("_", "-") for name in names]


def _leaves(content: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        yield from _leaves(value) if isinstance(value, dict) else [(name, value)]


@cache
def program_hash() -> str:
    """Return the hash of the code that decides the content of a set; a set that other code built is not reused."""
    ours, text = Path(__file__).parent, Path(chatbot.text.__path__[0])
    paths = [path for pattern in _OURS for path in sorted(ours.glob(pattern))]
    paths += [path for pattern in _TEXT for path in sorted(text.glob(pattern))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in paths)).hexdigest()
