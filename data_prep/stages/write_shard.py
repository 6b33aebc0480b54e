"""What worker processes do with a bucket: of equal dialogues one stays, and the bucket becomes a shard of each split.

As `data_prep.stages.clean_block`: from files of the work folder to whole files in it, decided by the arguments alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from itertools import chain
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from chatbot.storage import write_json, write_stream, write_whole
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.corpus.content_hash import SPLITS, is_valid_key
from data_prep.corpus.near_duplicates import near_duplicates, signatures
from data_prep.stages.arrow_files import SCHEMA, keys_of, open_buckets, texts_of
from data_prep.stages.clean_block import Unit
from data_prep.stages.cut_frequent import joined, read_frequent
from data_prep.stages.losses import DUPLICATE, LEAKS, NEAR, Losses

_TURNS_AT_A_TIME = 1 << 12
_ROWS_A_BATCH = 1 << 15


def forget() -> None:
    """Forgets what was read from a work folder: another build in this process may have one of the same name."""
    for kept in (read_frequent, _near, _tokenizer):
        kept.cache_clear()


@dataclass(frozen=True)
class Bucket:
    """The dialogues of a bucket, each once.

    Attributes:
        rows: `pieces.SCHEMA`.
        rank: int64 `[N]`, index of the split in `SPLITS`.
        lost: The other rows, with why they are lost.
    """

    rows: pa.RecordBatch
    rank: np.ndarray
    lost: tuple[pa.RecordBatch, list[str]]


def read_bucket(folder: Path, units: Sequence[Unit], bucket: int, valid_share: float) -> Bucket:
    """Gathers a bucket from all units; of equal dialogues one stays, a held-out one before one of train."""
    batches, given = [], []
    for unit in units:
        path = folder / f"{unit.name}-cut.arrow"
        path = path if path.exists() else folder / f"{unit.name}.arrow"
        batch = open_buckets(path).get_batch(bucket)
        if len(batch):
            batches.append(batch)
            given.append(np.full(len(batch), SPLITS.index(unit.split)))
    rows = joined(batches)
    rank = np.concatenate([*given, np.zeros(0, np.int64)])
    keys = keys_of(rows)
    if len(rows):
        rank = np.where(
            (rank == SPLITS.index("train")) & is_valid_key(keys[:, 0], valid_share), SPLITS.index("valid"), rank
        )
    origin = rows.column("origin").to_numpy()
    order = np.lexsort((origin, rank, keys[:, 1], keys[:, 0]))
    same = np.zeros(len(order), bool)
    same[1:] = (keys[order[1:]] == keys[order[:-1]]).all(1)
    kept = order[~same]
    first = order[np.maximum.accumulate(np.where(same, 0, np.arange(len(order))))] if len(order) else order
    why = [
        DUPLICATE if rank[row] == rank[stays] else LEAKS[SPLITS[rank[stays]]]
        for row, stays in zip(order[same].tolist(), first[same].tolist(), strict=True)
    ]
    lost = rows.take(pa.array(order[same]))
    return Bucket(rows.take(pa.array(kept)), rank[kept], (lost, why))


def shuffled(keys: np.ndarray, seed: int) -> np.ndarray:
    """A random order of dialogues that depends on their content and the seed alone."""
    start = int.from_bytes(hashlib.blake2b(str(seed).encode(), digest_size=8).digest(), "little")
    mixed = (keys[:, 1] ^ np.uint64(start)) * np.uint64(0x9E3779B97F4A7C15)
    return np.lexsort((keys[:, 0], mixed ^ (mixed >> np.uint64(29))))


def sign_bucket(folder: Path, units: Sequence[Unit], bucket: int, valid_share: float) -> None:
    """Writes near-BUCKET.npz: the MinHash signatures, ranks and keys of a bucket."""
    found = read_bucket(folder, units, bucket, valid_share)
    keys, signs = keys_of(found.rows), signatures(texts_of(found.rows.column("turns")))
    path = folder / f"near-{bucket:05}.npz"
    write_stream(path, lambda file: np.savez(file, keys=keys, rank=found.rank, signs=signs))


def find_near(folder: Path, buckets: int, threshold: float, held_out_only: bool) -> None:
    """Writes near.npy: the keys of the dialogues that are near another one, uint64 `[N, 2]`, sorted."""
    parts = [np.load(folder / f"near-{bucket:05}.npz") for bucket in range(buckets)]
    rank = np.concatenate([part["rank"] for part in parts])
    order = np.argsort(rank, kind="stable")
    signs = np.concatenate([part["signs"] for part in parts])[order]
    goes = near_duplicates(signs, rank[order], threshold, held_out_only)
    keys = np.concatenate([part["keys"] for part in parts])[order][goes]
    keys = keys[np.lexsort((keys[:, 1], keys[:, 0]))]
    write_stream(folder / "near.npy", lambda file: np.save(file, keys))


@cache
def _tokenizer(folder: Path) -> DialogueTokenizer:
    return DialogueTokenizer.load(folder / "tokenizer")


@cache
def _near(folder: Path) -> set[bytes]:
    path = folder / "near.npy"
    return {key.tobytes() for key in np.load(path)} if path.exists() else set()


def write_shard(
    folder: Path, units: Sequence[Unit], bucket: int, valid_share: float, seed: int, top: frozenset[int]
) -> None:
    """Writes the shards of a bucket, SPLIT-BUCKET.arrow, its losses, and shard-BUCKET.json, the statistics, last."""
    found = read_bucket(folder, units, bucket, valid_share)
    losses = Losses(*units)
    _lose(found.lost[0], found.lost[1], losses)
    keys = keys_of(found.rows)
    is_near = (
        np.array([key.tobytes() in _near(folder) for key in keys], bool) if _near(folder) else np.zeros(len(keys), bool)
    )
    near = found.rows.filter(pa.array(is_near))
    _lose(near, [NEAR] * len(near), losses)
    rows, rank, keys = found.rows.filter(pa.array(~is_near)), found.rank[~is_near], keys[~is_near]
    order = shuffled(keys, seed)
    tokenizer = _tokenizer(folder)
    statistics = {}
    for index, split in enumerate(SPLITS):
        chosen = order[rank[order] == index]
        statistics[split] = _write_split(
            folder / f"{split}-{bucket:05}.arrow", rows.take(pa.array(chosen)), tokenizer, top
        )
    losses.save(folder / f"shard-{bucket:05}")
    write_json(folder / f"shard-{bucket:05}.json", statistics, durable=False)


def _lose(rows: pa.RecordBatch, why: Sequence[str], losses: Losses) -> None:
    columns = [rows.column(name).to_pylist() for name in SCHEMA.names[3:]]
    for turns, reason, *about in zip(texts_of(rows.column("turns")), why, *columns, strict=True):
        losses.count(*about, -1, reason)
        losses.tell(about[0], reason, turns)


def _write_split(path: Path, rows: pa.RecordBatch, tokenizer: DialogueTokenizer, top: frozenset[int]) -> dict:
    """Writes a shard, unless it is empty, and returns what the manifest and the report say of it."""
    column = rows.column("turns")
    texts = column.flatten()
    starts = (column.offsets.to_numpy() - column.offsets.to_numpy()[:1]).astype(np.int32)
    characters = pc.utf8_length(texts).to_numpy()
    ids, lengths = _encode(texts.to_numpy(zero_copy_only=False).tolist(), tokenizer)
    token_starts = np.concatenate([[0], np.cumsum(lengths)])
    turns = np.diff(starts)
    units = _sums(characters + 1, starts)
    if len(rows):
        _write_arrow(path, ids, token_starts, starts, units)
    replies = (
        texts.filter(pa.array(np.isin(rows.column("hashes").flatten().to_numpy(), list(top)))) if top else texts[:0]
    )
    counted = replies.value_counts()
    return {
        "dialogues": len(rows),
        "turns": len(texts),
        "tokens": len(ids) + len(texts),
        "units": int(units.sum()),
        "characters": int(characters.sum()),
        "content_hash": hashlib.sha256(keys_of(rows).tobytes()).hexdigest(),
        "turns_a_dialogue": np.bincount(turns).tolist(),
        "characters_a_turn": np.bincount(characters).tolist(),
        "tokens_a_dialogue": _binned(_sums(lengths + 1, starts) + 1),
        "token_counts": np.bincount(ids, minlength=tokenizer.vocab_size).tolist(),
        "top": {entry["values"]: entry["counts"] for entry in counted.to_pylist()},
    }


def _encode(texts: list[str], tokenizer: DialogueTokenizer) -> tuple[np.ndarray, np.ndarray]:
    """Ids of all texts, int32 `[tokens]`, and how many each has, int64 `[texts]`."""
    ids, lengths = [], []
    for start in range(0, len(texts), _TURNS_AT_A_TIME):
        encoded = tokenizer.encode_batch(texts[start : start + _TURNS_AT_A_TIME])
        lengths.append(np.fromiter(map(len, encoded), np.int64, len(encoded)))
        ids.append(np.fromiter(chain.from_iterable(encoded), np.int32, lengths[-1].sum()))
    return np.concatenate([*ids, np.zeros(0, np.int32)]), np.concatenate([*lengths, np.zeros(0, np.int64)])


def _sums(values: np.ndarray, starts: np.ndarray) -> np.ndarray:
    """Sum over each dialogue, int64."""
    total = np.concatenate([[0], np.cumsum(values)])
    return np.diff(total[starts])


def _binned(values: np.ndarray) -> list[int]:
    """How many values are in (2^(i/2 - 1/2), 2^(i/2)], for each i."""
    return np.bincount(np.ceil(2 * np.log2(np.maximum(values, 1))).astype(int)).tolist()


def _write_arrow(path: Path, ids: np.ndarray, token_starts: np.ndarray, starts: np.ndarray, units: np.ndarray) -> None:
    schema = pa.schema({"turns": pa.list_(pa.list_(pa.int32())), "units": pa.int32()})

    def write(part: Path) -> None:
        with pa.OSFile(str(part), "wb") as file, pa.ipc.new_stream(file, schema) as writer:
            for first in range(0, len(units), _ROWS_A_BATCH):
                last = min(first + _ROWS_A_BATCH, len(units))
                bounds = token_starts[starts[first] : starts[last] + 1]
                flat = pa.array(ids[bounds[0] : bounds[-1]])
                turns = pa.ListArray.from_arrays(pa.array((bounds - bounds[0]).astype(np.int32)), flat)
                dialogues = pa.ListArray.from_arrays(pa.array(starts[first : last + 1] - starts[first]), turns)
                columns = [dialogues, pa.array(units[first:last].astype(np.int32))]
                writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))

    write_whole(path, write)
