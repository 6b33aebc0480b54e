"""Merges of a weights file from elsewhere are indexed in time that grows with their number."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from xianliao_lite import Bot, LiteError

from tests.lite.building import tiny_checkpoint, weights_file
from tests.processor_time import processor_seconds

MERGES, CHARACTERS, PIECE_BYTES = 17, 18, 20
"""Indices in the numbers of the header."""


@pytest.fixture(scope="module")
def weights(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return weights_file(folder, tiny_checkpoint(folder / "tiny", tokenizer)).read_bytes()


def with_merges(content: bytes, pairs: np.ndarray, path: Path) -> Path:
    """Write the weights file with other merges."""
    numbers = struct.unpack_from("<24i", content, 24)
    end, vocabulary = 512, numbers[0]
    sizes = [
        4 * (vocabulary + 1),
        numbers[PIECE_BYTES],
        vocabulary,
        4 * 256,
        8 * numbers[CHARACTERS],
        12 * numbers[MERGES],
    ]
    for size in sizes:
        start, end = -(-end // 64) * 64, -(-end // 64) * 64 + size
    merges = np.concatenate([pairs, np.full((len(pairs), 1), 5)], axis=1).astype("<i4").tobytes()
    merges += bytes(-len(merges) % 64)
    changed = bytearray(content[:start] + merges + content[-(-end // 64) * 64 :])
    struct.pack_into("<i", changed, 24 + 4 * MERGES, len(pairs))
    struct.pack_into("<Q", changed, 16, len(changed))
    struct.pack_into("<I", changed, 12, zlib.crc32(bytes(changed[16:])))
    path.write_bytes(changed)
    return path


def pairs_of(content: bytes) -> np.ndarray:
    """All pairs of ids, in random order, at most a million."""
    (vocabulary,) = struct.unpack_from("<i", content, 24)
    pairs = np.random.default_rng(0).permutation(min(vocabulary, 1024) ** 2)
    return np.stack(np.divmod(pairs, min(vocabulary, 1024)), axis=1)


def test_merges_that_were_chosen_to_collide_are_refused(weights, library, tmp_path):
    pairs, count = pairs_of(weights), 2_000
    keys = ((pairs[:, 0].astype(np.uint64) << np.uint64(32)) | pairs[:, 1].astype(np.uint64)) + np.uint64(1)
    slots = keys * np.uint64(0x9E3779B97F4A7C15) >> np.uint64(20) & np.uint64(2**12 - 1)
    path = with_merges(weights, pairs[np.argsort(slots, kind="stable")[:count]], tmp_path / "file")
    with pytest.raises(LiteError, match="merges collide"):
        Bot(path, library=library)


def test_a_million_merges_are_read_within_a_second(weights, library, tmp_path):
    path = with_merges(weights, pairs_of(weights), tmp_path / "file")
    assert processor_seconds(lambda: Bot(path, library=library), 1) < 1
