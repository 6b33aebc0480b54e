"""Stage 1: clean the dialogues of a block.

A stage is a function that reads files of the work folder and writes whole files to it. Its output depends only on its
arguments, and a file that already exists is not written again.
"""

from __future__ import annotations

import json
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from chatbot.storage import replacing, write_json
from data_prep.cleaning.cleaner import ONE_TURN, Cleaner
from data_prep.cleaning.ledger import Ledger
from data_prep.reading.formats import Block, left_out, records
from data_prep.reading.records import MAX_TURNS
from data_prep.settings import CleanSettings
from data_prep.stages.arrow_files import (
    PieceCollector,
    Provenance,
    hashes_of,
    open_buckets,
    origin_of,
    save_buckets,
    turn_starts,
)
from data_prep.stages.block_id import BlockId

MAX_SHOWN_CHARACTERS = 200
"""Maximum number of characters of a removed turn in the list of removed turns."""


@cache
def _cleaner(settings: CleanSettings) -> Cleaner:
    return Cleaner(settings)


def clean_block(folder: Path, block_id: BlockId, block: Block, settings: CleanSettings, buckets: int) -> None:
    """Write NAME.arrow, the clean dialogues; NAME.gz, the removed turns; and last NAME.json, the counts.

    Args:
        folder: The work folder.
        block_id: Determines NAME, the common part of the names of the files.
        block: Records to clean.
        settings: Switches and limits of cleaning.
        buckets: Number of buckets.
    """
    cleaner, ledger, pieces = _cleaner(settings), Ledger(), PieceCollector(buckets)
    removed = RemovedLines()
    for number, text, why in left_out(block):
        ledger.left_out[why] += 1
        ledger.add_sample(why, text)
        removed.add({"file": block_id.source, "record": number, "reason": why, "text": text})
    for number, turns, reason in records(block):
        entry = {"file": block_id.source, "record": number}
        ledger.turns["read"] += len(turns or ())
        if turns is None or reason is not None:
            reason = reason or "unknown"
            ledger.drop(reason)
            ledger.turns["removed"] += len(turns or ())
            removed.add({**entry, "reason": reason, **({"text": turns} if turns else {})})
            continue
        ledger.inspect(turns)
        clean, lost = cleaner.pieces(turns, ledger)
        for index, why in lost:
            removed.add({**entry, "turn": index, "reason": why, "text": turns[index][:MAX_SHOWN_CHARACTERS]})
        if not turns:
            removed.add({**entry, "reason": ONE_TURN})
        whole = not lost and len(turns) <= MAX_TURNS
        provenance = Provenance(origin_of(block_id.file, number), len(clean), whole)
        for piece in clean:
            pieces.add(piece, provenance)
    save_buckets(folder / f"{block_id.name}.arrow", pieces.batches())
    removed.save(folder / f"{block_id.name}.gz")
    write_json(folder / f"{block_id.name}.json", ledger.to_json(), durable=False)


class RemovedLines:
    """Removed turns and dialogues as compressed JSONL: the entries themselves need hundreds of bytes per turn."""

    def __init__(self) -> None:
        self._gzip = zlib.compressobj(3, wbits=31)  # 15 bits of window, + 16 for a gzip header, which has no time stamp
        self._parts: list[bytes] = []
        self._is_empty = True

    def add(self, entry: dict[str, Any]) -> None:
        line = json.dumps(entry, ensure_ascii=False) + "\n"
        if part := self._gzip.compress(line.encode("utf-8", "replace")):
            self._parts.append(part)
        self._is_empty = False

    def save(self, path: Path) -> None:
        """Write the file, which is empty without entries; the files can be joined end to end."""
        if not self._is_empty:
            self._parts.append(self._gzip.flush())
        with replacing(path, durable=False) as temporary:
            temporary.write_bytes(b"".join(self._parts))


def read_turn_hashes(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes of all turns of a block, and where dialogues begin.

    Args:
        path: NAME.arrow.

    Returns:
        uint64 `[T]`, and int64 `[dialogues + 1]` as in `FrequentTurns.find_dirty`.
    """
    file = open_buckets(path, ["hashes"])
    batches = [file.get_batch(bucket) for bucket in range(file.num_record_batches)]
    hashes = [np.zeros(0, np.uint64), *map(hashes_of, batches)]
    lengths = [np.zeros(0, np.int64), *(np.diff(turn_starts(batch)) for batch in batches)]
    return np.concatenate(hashes), np.concatenate([[0], np.cumsum(np.concatenate(lengths))]).astype(np.int64)
