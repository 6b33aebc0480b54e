"""Packed files: every packing and encoding reads the same, in bounded memory, however much a small file holds."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import time
import tracemalloc

import pytest
import zstandard

from chatbot.errors import FileError
from chatbot.text import packed_files
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.packed_files import PackedFile, read_lines

DIALOGUES = [["你好", "你好呀"], ["吃了吗", "吃了"]]
LINES = "".join(json.dumps(turns, ensure_ascii=False) + "\n" for turns in DIALOGUES)
PACKINGS = {
    "gz": gzip.compress,
    "bz2": bz2.compress,
    "xz": lzma.compress,
    "zst": zstandard.compress,
}
ENCODINGS = {
    "utf-8": lambda text: text.encode(),
    "utf-8 with a mark": lambda text: text.encode("utf-8-sig"),
    "utf-16": lambda text: text.encode("utf-16"),
    "gb18030": lambda text: text.encode("gb18030"),
    "carriage returns": lambda text: text.replace("\n", "\r\n").encode(),
    "without the last line end": lambda text: text.rstrip().encode(),
}
MEMBER = b"a" * (40 << 20)


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packing", ["plain", *PACKINGS])
def test_dialogues_of_every_packing_and_encoding_read_the_same(tmp_path, packing, encoding):
    path = tmp_path / (f"x.jsonl.{packing}" if packing in PACKINGS else "x.jsonl")
    path.write_bytes(PACKINGS.get(packing, bytes)(ENCODINGS[encoding](LINES)))
    assert list(read_dialogues(path)) == DIALOGUES
    assert list(read_dialogues(tmp_path)) == DIALOGUES  # by its suffix


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_small_file_with_much_content_takes_bounded_memory(tmp_path, packing):
    path = tmp_path / "bomb"
    path.write_bytes(PACKINGS[packing](MEMBER) * 3)
    assert path.stat().st_size < 200_000
    tracemalloc.start()
    size = largest = 0
    for chunk in PackedFile(path).chunks():
        size += len(chunk)
        largest = max(largest, len(chunk))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert size == 3 * len(MEMBER)
    assert largest <= 4 << 20
    assert peak < len(MEMBER)


@pytest.mark.parametrize("packing", PACKINGS)
def test_a_line_that_grows_too_long_is_one_sentence(tmp_path, packing):
    path = tmp_path / "bomb"
    path.write_bytes(PACKINGS[packing](MEMBER) * 100)  # 4 GB
    start = time.process_time()
    with pytest.raises(FileError, match="has a line of more than 16 MB"):
        list(read_lines(path))
    assert time.process_time() - start < 5


def test_a_member_that_is_packed_in_many_small_steps_is_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(packed_files, "CONTENT_BYTES", 7)
    monkeypatch.setattr(packed_files, "FILE_BYTES", 5)
    for name, pack in PACKINGS.items():
        path = tmp_path / name
        path.write_bytes(pack(LINES.encode()) + pack(b"") + b"\0" * 12 + pack(LINES.encode()))
        assert b"".join(PackedFile(path).chunks()) == 2 * LINES.encode(), name


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"", "is empty"),
        (gzip.compress(b"", mtime=0), "is empty"),
        (b"\xff\xff\n", "Line 1 .* neither UTF-8 nor GB18030"),
        (gzip.compress(LINES.encode(), mtime=0)[:-6], "cut short or damaged"),
        (bz2.compress(LINES.encode())[:9] + b"\0" * 40, "is damaged"),
        (bz2.compress(LINES.encode())[:-3], "cut short or damaged"),
        (b"PK\x03\x04" + bytes(99), "is not text"),
        (b'["a", 1]\n', "Line 1 .* not a JSON list of strings"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "x"
    path.write_bytes(content)
    with pytest.raises(FileError, match=says) as error:
        list(read_dialogues(path))
    assert str(path) in str(error.value)
    with pytest.raises(FileError, match=r"Cannot read .*: No such file"):
        list(read_dialogues(tmp_path / "nothing"))
