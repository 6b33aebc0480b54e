"""Banned words of a weights file from elsewhere: opened in time that grows with their number, and searched exactly."""

from __future__ import annotations

import copy
import random
import struct
import zlib
from pathlib import Path

import pytest
from xianliao_lite import Bot, LiteError

from chatbot import Chatbot
from chatbot.checkpoint.export.lite import lite_bytes
from chatbot.checkpoint.export.rules import spelled_words
from chatbot.decoding.settings import ReplySettingsError
from chatbot.safety import default_safety
from tests.lite.building import tiny_checkpoint, weights_file
from tests.processor_time import processor_seconds

VOCABULARY, MERGES, CHARACTERS, RANGES, PIECE_BYTES, TABLE_BYTES, BANNED_BYTES = 0, 17, 18, 19, 20, 21, 22
"""Indices in the numbers of the header."""


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory):
    return tiny_checkpoint(tmp_path_factory.mktemp("weights") / "tiny", tokenizer)


@pytest.fixture(scope="module")
def weights(checkpoint):
    return weights_file(checkpoint.parent, checkpoint).read_bytes()


def with_words(content: bytes, words: bytes, path: Path) -> Path:
    """Write the weights file with another list of banned words."""
    n = struct.unpack_from("<24i", content, 24)
    sizes = [4 * (n[VOCABULARY] + 1), n[PIECE_BYTES], n[VOCABULARY], 4 * 256, 8 * n[CHARACTERS], 12 * n[MERGES]]
    end = 512
    for size in (*sizes, 8 * n[RANGES], n[TABLE_BYTES], n[BANNED_BYTES]):
        start, end = -(-end // 64) * 64, -(-end // 64) * 64 + size
    changed = bytearray(content[:start] + words + bytes(-len(words) % 64) + content[-(-end // 64) * 64 :])
    struct.pack_into("<i", changed, 24 + 4 * BANNED_BYTES, len(words))
    struct.pack_into("<Q", changed, 16, len(changed))
    struct.pack_into("<I", changed, 12, zlib.crc32(bytes(changed[16:])))
    path.write_bytes(changed)
    return path


def test_as_many_words_as_a_checkpoint_may_have_are_read_within_half_a_second(weights, library, tmp_path):
    words = b"".join(b"w%05d\n" % i for i in range(80_000)) + b"".join(b"!exception%05d\n" % i for i in range(2_000))
    path = with_words(weights, words, tmp_path / "file")
    assert processor_seconds(lambda: Bot(path, library=library), 0.5) < 0.5


@pytest.mark.parametrize("words", [b"ab\n" * 80_001, b"ab\n" + b"!xab\n" * 2_001, b"a" * 601 + b"\n"])
def test_more_or_longer_words_are_refused(weights, library, tmp_path, words):
    path = with_words(weights, words, tmp_path / "file")
    with pytest.raises(LiteError, match=r"banned words\. Export it again"):
        Bot(path, library=library)


def test_words_that_contain_each_other_forbid_the_same_tokens_as_in_python(checkpoint, weights, library, tmp_path):
    """Repeated, nested and guarded words; the letters are those of the tiny bot's replies."""
    draw = random.Random(0)
    python = Chatbot.from_pretrained(checkpoint, dtype="int8", safety=None)
    spoken = "".join(python.reply(["你好"], seed=seed, banned_words=[]) for seed in range(5))
    letters = sorted(set(spoken) - {" ", "!", "\n"})
    for number in range(8):
        banned = {"".join(draw.choices(letters, k=draw.randint(1, 3))) for _ in range(60)}
        guarded = sorted(banned)[::4]
        words = [*banned, *("!" + "".join(draw.choices(letters, k=draw.randint(1, 2))) + word for word in guarded)]
        text = "".join(f"{word}\n" for word in (*spelled_words(words), *spelled_words(words)[:9])).encode()
        lite = Bot(with_words(weights, text, tmp_path / f"file{number}"), library=library)
        for seed in range(6):
            ours = python.respond(["你好"], seed=seed, banned_words=words)
            assert list(lite.reply(["你好"], seed=seed).token_ids) == list(ours.token_ids)
            assert ours.token_ids


def test_the_export_refuses_a_list_that_no_bot_takes(checkpoint):
    many = copy.copy(default_safety())
    many.banned_words = tuple(f"w{number}" for number in range(20_001))
    with pytest.raises(ReplySettingsError, match="may have 20,000 words"):
        lite_bytes(checkpoint, many)
