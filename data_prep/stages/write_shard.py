"""Stage 5: tokenize a bucket and write it as one shard of each split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cache
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chatbot.storage import write_json, write_whole
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.corpus.content_hash import SPLITS
from data_prep.stages.arrow_files import hashes_of, keys_of, provenances_of, texts_of, turn_starts
from data_prep.stages.block_id import BlockId
from data_prep.stages.buckets import read_bucket
from data_prep.stages.losses import NEAR, Losses
from data_prep.stages.mark_near import near_keys

_TURNS_AT_A_TIME = 1 << 12
_ROWS_A_BATCH = 1 << 15


def write_shard(
    folder: Path, blocks: Sequence[BlockId], bucket: int, valid_share: float, seed: int, top: frozenset[int]
) -> None:
    """Write SPLIT-BUCKET.arrow, the losses, and last shard-BUCKET.json, the statistics.

    Args:
        folder: The work folder.
        blocks, bucket, valid_share: See `read_bucket`.
        seed: Seed of the order of the dialogues.
        top: Hashes of the turns to count.
    """
    content = read_bucket(folder, blocks, bucket, valid_share)
    losses = Losses(blocks)
    _drop(content.dropped, content.drop_reasons, losses)
    near = near_keys(folder)
    is_near = np.array([key.tobytes() in near for key in keys_of(content.rows)], bool)
    near_rows = content.rows.filter(pa.array(is_near))
    _drop(near_rows, [NEAR] * len(near_rows), losses)
    rows, rank = content.rows.filter(pa.array(~is_near)), content.rank[~is_near]
    order = shuffled(keys_of(rows), seed)
    tokenizer = _tokenizer(folder)
    statistics = {}
    for index, split in enumerate(SPLITS):
        split_rows = rows.take(pa.array(order[rank[order] == index]))
        statistics[split] = _write_split(folder / f"{split}-{bucket:05}.arrow", split_rows, tokenizer, top)
    losses.save(folder / f"shard-{bucket:05}")
    write_json(folder / f"shard-{bucket:05}.json", statistics, durable=False)


@cache
def _tokenizer(folder: Path) -> DialogueTokenizer:
    return DialogueTokenizer.load(folder / "tokenizer")


def forget_tokenizer() -> None:
    """Drop the cached tokenizer: another build in this process can have a work folder of the same name."""
    _tokenizer.cache_clear()


def shuffled(keys: np.ndarray, seed: int) -> np.ndarray:
    """Return a random order of dialogues that depends on their content hashes and the seed alone.

    Args:
        keys: Content hashes, uint64 `[N, 2]`.
        seed: Any integer.

    Returns:
        Row numbers, int64 `[N]`.
    """
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    mixed = (keys[:, 1] ^ np.uint64(start)) * np.uint64(0x9E3779B97F4A7C15)
    return np.lexsort((keys[:, 0], mixed ^ (mixed >> np.uint64(29))))


def _drop(rows: pa.RecordBatch, reasons: Sequence[str], losses: Losses) -> None:
    for turns, reason, provenance in zip(texts_of(rows), reasons, provenances_of(rows), strict=True):
        losses.add(provenance, -1, reason, len(turns))
        losses.describe(provenance, reason, turns)


def _write_split(path: Path, rows: pa.RecordBatch, tokenizer: DialogueTokenizer, top: frozenset[int]) -> dict[str, Any]:
    """Write a shard, unless it is empty; return the statistics for the manifest and the report."""
    texts, starts = rows.column("turns").flatten(), turn_starts(rows)
    characters = pc.utf8_length(texts).to_numpy()
    ids, lengths = _encode(texts.to_numpy(zero_copy_only=False).tolist(), tokenizer)
    token_starts = np.concatenate([[0], np.cumsum(lengths)])
    units = _sum_per_dialogue(characters + 1, starts)
    if len(rows):
        _write_arrow(path, ids, token_starts, starts, units)
    is_top = np.isin(hashes_of(rows), np.array(list(top), np.uint64))
    return {
        "dialogues": len(rows),
        "turns": len(texts),
        "tokens": len(ids) + len(texts),
        "units": int(units.sum()),
        "characters": int(characters.sum()),
        "content_hash": hashlib.sha256(keys_of(rows).tobytes()).hexdigest(),
        "turns_per_dialogue": np.bincount(np.diff(starts)).tolist(),
        "characters_per_turn": np.bincount(characters).tolist(),
        "tokens_per_dialogue": log_histogram(_sum_per_dialogue(lengths + 1, starts) + 1),
        "token_counts": np.bincount(ids, minlength=tokenizer.vocab_size).tolist(),
        "top": {
            entry["values"]: entry["counts"] for entry in texts.filter(pa.array(is_top)).value_counts().to_pylist()
        },
    }


def _encode(texts: Sequence[str], tokenizer: DialogueTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Return the ids of all texts, int32 `[tokens]`, and the number of ids of each, int64 `[texts]`."""
    ids, lengths = [np.zeros(0, np.int32)], [np.zeros(0, np.int64)]
    for start in range(0, len(texts), _TURNS_AT_A_TIME):
        encoded = tokenizer.encode_batch(texts[start : start + _TURNS_AT_A_TIME])
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        ids.append(np.fromiter(chain.from_iterable(encoded), np.int32, int(lengths[-1].sum())))
    return np.concatenate(ids), np.concatenate(lengths)


def _sum_per_dialogue(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Return the sum of the values of the turns of each dialogue, int64."""
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(total[starts])


def log_histogram(values: np.ndarray) -> list[int]:
    """Return the numbers of values in (2^(i/2 - 1/2), 2^(i/2)], for i = 0, 1, 2, …"""
    return np.bincount(np.ceil(2 * np.log2(np.maximum(values, 1))).astype(int)).tolist()


def _write_arrow(path: Path, ids: np.ndarray, token_starts: np.ndarray, starts: np.ndarray, units: np.ndarray) -> None:
    """Write a shard as the stream that `datasets` writes.

    Args:
        path: File to write.
        ids: Token ids of all turns, int32 `[tokens]`.
        token_starts: Index of the first id of each turn, and the number of ids, `[turns + 1]`.
        starts: Index of the first turn of each dialogue, and the number of turns, `[dialogues + 1]`.
        units: Number of units (`count_units`) in each dialogue, `[dialogues]`.
    """
    schema = pa.schema({"turns": pa.list_(pa.list_(pa.int32())), "units": pa.int32()})

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for first in range(0, len(units), _ROWS_A_BATCH):
                last = min(first + _ROWS_A_BATCH, len(units))
                turn_bounds = starts[first : last + 1]
                id_bounds = token_starts[turn_bounds[0] : turn_bounds[-1] + 1]
                turns = pa.ListArray.from_arrays(
                    pa.array((id_bounds - id_bounds[0]).astype(np.int32)), pa.array(ids[id_bounds[0] : id_bounds[-1]])
                )
                dialogues = pa.ListArray.from_arrays(pa.array((turn_bounds - turn_bounds[0]).astype(np.int32)), turns)
                columns = [dialogues, pa.array(units[first:last].astype(np.int32))]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

    write_whole(path, write)
