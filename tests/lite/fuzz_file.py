"""Opens damaged weights files in a sanitized build of the runtime, and talks to those that open; run by test_hostile."""

from __future__ import annotations

import random
import struct
import sys
import zlib
from pathlib import Path

from xianliao_lite import Bot, LiteError

HEADER, TEXT = 512, 40_000


def damaged(content: bytes, draw: random.Random) -> bytes:
    """Cut a file off, or change some bytes; half of the files get a right checksum and size, as a forger would do."""
    data = bytearray(content)
    if draw.random() < 0.2:
        del data[draw.randrange(len(data)) :]
    for _ in range(draw.choice([0, 1, 2, 8, 64])):
        if data:
            offset = draw.randrange(min(len(data), draw.choice([HEADER, TEXT, len(data)])))
            data[offset] = draw.choice([0, 1, 0x7F, 0x80, 0xFF, draw.randrange(256)])
    if draw.random() < 0.8 and len(data) > HEADER:
        data[:8] = b"xianliao"
        data[16:24] = struct.pack("<Q", len(data))
        data[8:16] = content[8:12] + struct.pack("<I", zlib.crc32(data[16:]))
    return bytes(data)


def main(library: str, weights: str, first: int, last: int) -> None:
    """Print how many files were refused, opened, and replied."""
    content, path = Path(weights).read_bytes(), Path(weights).with_name(f"damaged-{first}")
    refused = opened = replied = 0
    for seed in range(first, last):
        draw = random.Random(seed)
        path.write_bytes(damaged(content, draw))
        try:
            bot = Bot(path, library=library)
        except LiteError:
            refused += 1
            continue
        opened += 1
        for turns in (["你好"], ["我想死", "好", "abc 哈哈 1", "嗯", "妈妈的 s.u x"]):
            try:
                changes = draw.choice([{}, {"candidates": 3}, {"method": "greedy"}, {"top_k": 3}])
                replied += bool(bot.reply(turns, seed, **changes))
            except LiteError:
                pass
        bot.close()
    print(refused, opened, replied)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
