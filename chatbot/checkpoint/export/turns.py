"""Tables with which the C runtime converts turns in the way of `chatbot.chat.turns`, and keeps replies readable."""

from __future__ import annotations

import re
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path

import numpy as np

from chatbot.checkpoint.export.blocks import array_block, numbers_block
from chatbot.decoding.settings import Script
from chatbot.errors import CheckpointError
from chatbot.storage import read_json
from chatbot.text.characters import (
    EMOJI,
    FULL_WIDTH,
    INVISIBLE,
    KEYCAPS,
    TAIWAN,
    WHITE,
    ZHU_AFTER,
    ZHU_BEFORE,
    is_readable,
)
from chatbot.text.dialogue import CJK

READABLE_KIND, BLANK_KIND = 1, 64
KINDS = {WHITE: 2, INVISIBLE: 4, EMOJI: 8, KEYCAPS: 16, CJK: 32}
"""Kinds of characters, as chatbot/native/runtime/characters.c has them; a character can be of several."""

ASSIGNED = 0x40000
ALIKE = ((ASSIGNED, 0xE0000), (0xE0000, 0x110000))
"""Ranges of code points whose members all have the same kinds: unassigned ones, tags, selectors, private characters."""


def turn_tables(script: Script) -> bytes:
    """Return the tables for a checkpoint whose setting `script` has this value.

    Raises:
        CheckpointError: The dictionaries of the installed OpenCC cannot be read.
    """
    stages = [_stage(_letters(FULL_WIDTH))]
    if script != "typed":
        stages += [*(_stage(entries, True) for entries in opencc_stages("t2s")), _stage(_letters(TAIWAN))]
    zhu, particle = (-1, 0) if script == "typed" else (ord("著"), ord("着"))
    before = [point for text in ZHU_BEFORE for point in (*map(ord, text), 0)]
    return b"".join(
        [
            array_block(np.array(character_kinds(), "<i4")),
            numbers_block(zhu, particle),
            array_block(np.array(list(map(ord, ZHU_AFTER)), "<i4")),
            array_block(np.array(before, "<i4")),
            numbers_block(len(stages)),
            *stages,
        ]
    )


@lru_cache(1)
def character_kinds() -> list[tuple[int, int]]:
    """Return (first code point, kinds) of each run of code points of the same kinds."""
    text = "".join(map(chr, (*range(ASSIGNED), *(start for start, _ in ALIKE))))
    kinds = np.zeros(len(text), np.int64)
    for letters, kind in KINDS.items():
        kinds[[match.start() for match in re.finditer(f"[{letters}]", text)]] |= kind
    kinds[[index for index, letter in enumerate(text) if is_readable.__wrapped__(letter)]] |= READABLE_KIND
    kinds[[index for index, letter in enumerate(text) if letter.isspace()]] |= BLANK_KIND
    begins = np.flatnonzero(np.diff(kinds, prepend=-1)).tolist()
    return [(ord(text[index]), int(kinds[index])) for index in begins]


@lru_cache(1)
def opencc_stages(conversion: str) -> tuple[dict[str, str], ...]:
    """Return the dictionaries of a conversion of the installed OpenCC; a text passes through them in order.

    At each position, a dictionary converts the longest text that it contains. The dictionaries are read with the
    program `opencc_dict`, which is part of OpenCC.

    Raises:
        CheckpointError: The files differ from those of OpenCC 1.4.
    """
    import opencc

    package = Path(opencc.__file__).parent / "clib"
    program = next(iter(sorted((package / "bin").glob("opencc_dict*"))), None)
    if program is None:
        raise CheckpointError(
            f"OpenCC {opencc.__version__} has no opencc_dict, which reads its dictionaries. Run: pip install -U opencc"
        )
    folder = package / "share" / "opencc"
    config = read_json(folder / f"{conversion}.json")
    stages = []
    for step in (*config.get("normalization", ()), *config["conversion_chain"]):
        entries: dict[str, str] = {}
        for name in _files_of(step["dict"]):
            entries = {**_read_dictionary(program, folder / name), **entries}  # the first dictionary has precedence
        stages.append(entries)
    return tuple(stages)


def _files_of(dictionary: Mapping) -> Iterator[str]:
    """Yield the files of a dictionary of an OpenCC configuration, which can be a group."""
    if dictionary["type"] != "group":
        yield dictionary["file"]
    for member in dictionary.get("dicts", ()):
        yield from _files_of(member)


def _read_dictionary(program: Path, path: Path) -> dict[str, str]:
    """Return the entries of an OpenCC dictionary; if an entry has several values, the first one is used.

    Raises:
        CheckpointError: The dictionary cannot be read.
    """
    with tempfile.TemporaryDirectory() as folder:
        text = Path(folder) / "entries.txt"
        command = [str(program), "-i", str(path), "-f", "ocd2", "-o", str(text), "-t", "text"]
        done = subprocess.run(command, capture_output=True, check=False)
        if done.returncode or not text.is_file():
            raise CheckpointError(f"opencc_dict cannot read {path}. Run: pip install --force-reinstall opencc")
        lines = text.read_text(encoding="utf-8").splitlines()
    return {key: values.split(" ")[0] for key, values in (line.split("\t") for line in lines if "\t" in line)}


def _letters(table: Mapping[int, int]) -> dict[str, str]:
    return {chr(key): chr(value) for key, value in table.items()}


def _stage(entries: Mapping[str, str], spares_descriptions: bool = False) -> bytes:
    """Return a dictionary as an index of (start, length) pairs, and the keys, each followed by its equally long value.

    Keys are sorted by their first character, longer ones first, so that the first match is the longest.

    Args:
        entries: The dictionary.
        spares_descriptions: Whether ideographic description sequences are left as they are.

    Raises:
        CheckpointError: A value and its key differ in length.
    """
    index: list[tuple[int, int]] = []
    points: list[int] = []
    for key, value in sorted(entries.items(), key=lambda entry: (entry[0][0], -len(entry[0]), entry[0])):
        if len(key) != len(value):
            raise CheckpointError(
                f"OpenCC turns {key} into {value}: the lite runtime needs equal lengths. Install opencc 1.4.2."
            )
        if key != value or len(key) > 1:
            index.append((len(points), len(key)))
            points += map(ord, key + value)
    blocks = [array_block(np.array(index, "<i4")), array_block(np.array(points, "<i4"))]
    return numbers_block(spares_descriptions) + b"".join(blocks)
