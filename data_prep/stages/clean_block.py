"""Stage 1: clean the dialogues of a block.

A stage is a function that reads files of the work folder and writes whole files to it. Its output depends only on its
arguments, and a file that already exists is not written again.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from chatbot.storage import replacing, write_json
from data_prep.cleaning.cleaner import ONE_TURN, Cleaner
from data_prep.cleaning.ledger import Ledger
from data_prep.reading.formats import Block, notices, records
from data_prep.reading.records import NOT_SPEECH
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
    removed: list[dict[str, Any]] = []
    for number, text in notices(block):
        ledger.left_out[NOT_SPEECH] += 1
        ledger.add_sample(NOT_SPEECH, text)
        removed.append({"file": block_id.source, "record": number, "reason": NOT_SPEECH, "text": text})
    for number, turns, reason in records(block):
        entry = {"file": block_id.source, "record": number}
        if turns is None:
            reason = reason or "unknown"
            ledger.drop(reason)
            removed.append({**entry, "reason": reason})
            continue
        ledger.inspect(turns)
        clean, dirty = cleaner.pieces(turns, ledger)
        removed += [{**entry, "turn": index, "reason": why, "text": turns[index][:200]} for index, why in dirty]
        if not clean and not dirty:
            removed.append({**entry, "reason": ONE_TURN})
        provenance = Provenance(origin_of(block_id.file, number), len(clean), whole=not dirty)
        for piece in clean:
            pieces.add(piece, provenance)
    save_buckets(folder / f"{block_id.name}.arrow", pieces.batches())
    write_removed(folder / f"{block_id.name}.gz", removed)
    write_json(folder / f"{block_id.name}.json", ledger.to_json(), durable=False)


def write_removed(path: Path, entries: Iterable[dict[str, Any]]) -> None:
    """Write JSONL for removed turns and dialogues, as gzip without a time stamp; the files can be joined end to end."""
    data = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries).encode("utf-8", "replace")
    with replacing(path, durable=False) as temporary:
        temporary.write_bytes(gzip.compress(data, 3, mtime=0) if data else b"")


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
