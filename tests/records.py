"""Reading of a whole file of dialogues by the readers of `data_prep`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from chatbot.text.packed_files import PackedFile
from data_prep.reading.formats import Record, read_blocks, records


def read_records(path: Path, form: str = "auto") -> Iterator[Record]:
    """Yield all records of a file; see `read_blocks`."""
    for block in read_blocks(PackedFile(path), form):
        yield from records(block)
