"""What worker processes do with a block: it is cleaned, and its frequent turns are cut.

Each step reads files of the work folder and writes whole files to it, and what it writes depends on its arguments
alone; a file that is there is not made again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np

from chatbot.storage import write_json, write_whole
from data_prep.cleaning.cleaner import ONE_TURN, Cleaner
from data_prep.cleaning.ledger import Ledger
from data_prep.reading.formats import Block, records
from data_prep.settings import CleanSettings
from data_prep.stages.arrow_files import PieceWriter, open_buckets, origin_of, save_buckets


@dataclass(frozen=True)
class Unit:
    """A block on its way.

    Attributes:
        place: Number of the input file, and of the block in it.
        source: Name of the input file.
        split: `train`, or the split that the file was given for.
    """

    place: tuple[int, int]
    source: str
    split: str

    @property
    def file(self) -> int:
        return self.place[0]

    @property
    def name(self) -> str:
        """Of its files."""
        return "unit-{:05}-{:06}".format(*self.place)


# --- cleaning ---


@cache
def _cleaner(settings: CleanSettings) -> Cleaner:
    return Cleaner(settings)


def clean_block(folder: Path, unit: Unit, block: Block, settings: CleanSettings, buckets: int) -> None:
    """Writes NAME.arrow, the clean dialogues; NAME.gz, what went; NAME.json, the counts, which comes last."""
    cleaner, ledger, writer = _cleaner(settings), Ledger(), PieceWriter(buckets)
    gone = []
    for number, turns, reason in records(block):
        entry = {"file": unit.source, "record": number}
        if turns is None:
            ledger.drop(reason)
            gone.append({**entry, "reason": reason})
            continue
        pieces, dirty = cleaner.pieces(turns, ledger)
        gone += [{**entry, "turn": index, "reason": why, "text": turns[index][:200]} for index, why in dirty]
        if not pieces and not dirty:
            gone.append({**entry, "reason": ONE_TURN})
        origin = origin_of(unit.file, number)
        for piece in pieces:
            writer.add(piece, origin, len(pieces), not dirty)
    save_buckets(folder / f"{unit.name}.arrow", writer.batches())
    write_gone(folder / f"{unit.name}.gz", gone)
    write_json(folder / f"{unit.name}.json", ledger.to_json(), durable=False)


def write_gone(path: Path, gone: Iterable[dict]) -> None:
    """A line for each turn and dialogue that went, gzip without a time stamp; such files can be joined end to end."""
    data = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in gone).encode("utf-8", "replace")
    write_whole(path, lambda part: part.write_bytes(gzip.compress(data, 3, mtime=0) if data else b""))


# --- frequent turns ---


def turn_hashes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of all turns of a unit, uint64 `[T]`, and where dialogues begin, int64 `[dialogues + 1]`."""
    file = open_buckets(path, ["hashes"])
    columns = [file.get_batch(index).column(0) for index in range(file.num_record_batches)]
    turns = [column.flatten().to_numpy() for column in columns]
    lengths = [np.diff(column.offsets.to_numpy()) for column in columns if len(column)]
    starts = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.zeros(0, np.int32)]))])
    return np.concatenate([*turns, np.zeros(0, np.uint64)]), starts.astype(np.int64)
