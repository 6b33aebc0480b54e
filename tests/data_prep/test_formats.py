from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random

import pytest
import zstandard

from chatbot.errors import FileError
from chatbot.text.packed_files import PackedFile
from data_prep.reading import formats
from data_prep.reading import records as record_reading
from data_prep.reading.files import list_files, sha256_of
from data_prep.reading.formats import read_blocks, read_records, records
from data_prep.reading.records import merge_speakers

SPACED = [["你 好", "你 好 呀", "吃 了 吗"], ["I love New York", "我 也 爱 New York"]]


def write(path, content: str | bytes):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def turns_of(path, form: str = "auto") -> list[list[str] | None]:
    return [turns for _, turns, _ in read_records(path, form)]


def reasons_of(path) -> list[str]:
    return [reason for _, turns, reason in read_records(path) if turns is None]


def lines(values) -> str:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values)


def messages(turns, speaker="role", text="content", names=("user", "assistant")):
    return [{speaker: names[index % 2], text: turn} for index, turn in enumerate(turns)]


FORMS = {
    "array": json.dumps(SPACED, ensure_ascii=False),
    "pretty array": json.dumps(SPACED, ensure_ascii=False, indent=2),
    "array of objects": json.dumps([{"dialog": turns} for turns in SPACED]),
    "array of ShareGPT": json.dumps(
        [{"id": 1, "conversations": messages(turns, "from", "value", ("human", "gpt"))} for turns in SPACED], indent=1
    ),
    "jsonl": lines(SPACED),
    "jsonl without the last end": lines(SPACED).rstrip(),
    "jsonl with escapes": "".join(json.dumps(turns) + "\r\n" for turns in SPACED),
    "dialog": lines({"id": 3, "dialog": turns} for turns in SPACED),
    "messages": lines({"messages": [{"role": "system", "content": "你是谁"}, *messages(turns)]} for turns in SPACED),
    "conversations": lines({"conversations": messages(turns, "from", "value", ("human", "gpt"))} for turns in SPACED),
    "tsv": "".join("\t".join(turns) + "\n" for turns in SPACED),
    "text": "\n\n\n".join("\n".join(turns) for turns in SPACED),
}
PACKED = {
    "gz": gzip.compress,
    "two gz members": lambda data: gzip.compress(data[:50]) + gzip.compress(data[50:]) + b"\0" * 512,
    "xz": lzma.compress,
    "bz2": bz2.compress,
    "zst": lambda data: zstandard.compress(data[:33]) + zstandard.compress(data[33:]),
    "mark": lambda data: b"\xef\xbb\xbf" + data,
    "utf-16": lambda data: data.decode().encode("utf-16"),
    "gb18030": lambda data: data.decode().encode("gb18030"),
}


@pytest.mark.parametrize("name", FORMS)
def test_every_form_reads_the_same(tmp_path, name):
    assert turns_of(write(tmp_path / "x", FORMS[name])) == SPACED


@pytest.mark.parametrize("form", ["jsonl", "array", "text"])
@pytest.mark.parametrize("name", PACKED)
def test_every_packing_and_encoding_reads_the_same(tmp_path, name, form):
    assert turns_of(write(tmp_path / "x", PACKED[name](FORMS[form].encode()))) == SPACED


WECHAT = """张三 2026-11-20 09:00:01
早
张三 2026-11-20 09:00:05
吃了吗

李四 2026-11-20 09:01
吃了！
包子
张三 2026-11-20 14:30
下班没
李四 2026-11-20 14:31
快了
"""
QQ = """2026/11/20 9:00:01 张三(10001)
早
2026/11/20 9:00:05 张三(10001)
吃了吗
2026/11/20 9:01:00 李四<a@b.c>
吃了！
包子
2026/11/20 下午 2:30:00 张三(10001)
下班没
2026/11/20 下午 2:31:00 李四<a@b.c>
快了
"""


@pytest.mark.parametrize("log", [WECHAT, QQ], ids=["WeChat", "QQ"])
def test_a_chat_log_is_cut_at_silences_and_speakers_merge(tmp_path, log):
    assert turns_of(write(tmp_path / "log.txt", log)) == [["早，吃了吗", "吃了！ 包子"], ["下班没", "快了"]]


LOGS = {
    "text on the line": "2026-11-20 09:00:01 小明: 在吗\n2026-11-20 09:00:05 小红: 在\n2026-11-20 09:00:09 小红: 怎么了\n",
    "brackets": "[2026-11-20 09:00:01] 小明: 在吗\n[2026-11-20 09:00:05] 小红：在\n[2026-11-20 09:00:09] 小红: 怎么了\n",
    "WhatsApp": "2026/11/20 9:00 - 小明: 在吗\n2026/11/20 9:01 - 小红: 在\n2026/11/20 9:01 - 小红: 怎么了\n",
    "T and milliseconds": "2026-11-20T09:00:01.123 小明\n在吗\n2026-11-20T09:00:05.001 小红\n在\n怎么了\n",
    "no space": "2026年11月20日9:00 小明\n在吗\n2026年11月20日9:01 小红\n在，怎么了\n",
    "no date": "小明 12:00\n在吗\n小红 12:01\n在\n怎么了\n",
    "system": "2026-11-20 9:00:01 系统消息(10000)\n你们已经是好友\n"
    "2026-11-20 9:00:02 小明(1)\n在吗\n2026-11-20 9:00:03 小红(2)\n在\n怎么了\n",
}


@pytest.mark.parametrize("name", LOGS)
def test_chat_logs_of_many_programs(tmp_path, name):
    (turns,) = turns_of(write(tmp_path / "log.txt", LOGS[name]))
    assert [turns[0], *turns[1].replace("，", " ").split()] == ["在吗", "在", "怎么了"]
    long = LOGS[name] + "一\n" * 12 + LOGS[name]  # messages of many lines
    assert len(turns_of(write(tmp_path / "long.txt", long))[0]) == 4


ALPACA = [
    {"instruction": "你好", "input": "", "output": "你好呀"},
    {"instruction": "翻译", "input": "早", "output": "morning", "history": [["在吗", "在"]]},
    {"question": "吃了吗", "answer": "吃了"},
]


def test_questions_with_answers_are_dialogues(tmp_path):
    expected = [["你好", "你好呀"], ["在吗", "在", "翻译\n早", "morning"], ["吃了吗", "吃了"]]
    for content in (lines(ALPACA), json.dumps(ALPACA, ensure_ascii=False, indent=1)):
        assert turns_of(write(tmp_path / "x", content)) == expected


@pytest.mark.parametrize("first", ["null", "# corpus", '", "半个"]', '{"dialog": ["你好", ', "你好"])
def test_jsonl_that_begins_badly_is_still_jsonl(tmp_path, first):
    found = list(read_records(write(tmp_path / "x", first + "\n" + lines(SPACED * 3))))
    assert [turns for _, turns, _ in found] == [None, *SPACED * 3]


def test_tsv_may_begin_with_a_line_without_a_tab(tmp_path):
    assert turns_of(write(tmp_path / "x", "标题\n" + FORMS["tsv"] * 3)) == [["标题"], *SPACED * 3]


def test_text_without_gaps_is_cut_and_a_bad_line_ends_a_dialogue(tmp_path, monkeypatch):
    assert turns_of(write(tmp_path / "x", "甲问\n".encode() + b"\xff\xfe\xff\n" + "乙答".encode())) == [
        ["甲问"],
        None,
        ["乙答"],
    ]
    monkeypatch.setattr(record_reading, "MAX_TURNS", 3)
    assert turns_of(write(tmp_path / "x", "一\n二\n三\n四")) == [["一", "二", "三"], ["四"]]


def test_a_huge_element_of_an_array_is_one_sentence_and_soon(tmp_path):
    import time

    path = write(tmp_path / "x", b'[["a", "b"], ["' + b"x" * (40 << 20) + b'", "y"]]')
    start = time.process_time()
    with pytest.raises(FileError, match="element of more than 16 million"):
        turns_of(path)
    assert time.process_time() - start < 10


def test_what_one_speaker_says_in_a_row_is_one_turn():
    assert merge_speakers([("a", "你好"), ("a", "在吗"), ("b", "在。"), ("b", "怎么"), ("a", "")]) == [
        "你好，在吗",
        "在。 怎么",
        "",
    ]


def test_the_form_can_be_said(tmp_path):
    path = write(tmp_path / "x", '["a"]\t["b"]\n')
    assert turns_of(path, "tsv") == [['["a"]', '["b"]']]
    assert turns_of(write(tmp_path / "t.txt", "[微笑] 你好\n[鼓掌] 好")) == [["[微笑] 你好", "[鼓掌] 好"]]
    assert turns_of(write(tmp_path / "t.tsv", "[微笑]\t好")) == [["[微笑]", "好"]]


@pytest.mark.parametrize("form", ["jsonl", "array", "text", "tsv"])
def test_a_large_file_comes_in_blocks_that_lose_nothing(tmp_path, form):
    dialogues = [[f"第 {number} 句", "嗯" * (number % 7 + 1)] for number in range(30_000)]
    content = {
        "jsonl": lines(dialogues),
        "array": json.dumps(dialogues, indent=1),
        "text": "\n\n".join("\n".join(turns) for turns in dialogues),
        "tsv": "".join("\t".join(turns) + "\n" for turns in dialogues),
    }[form]
    path = write(tmp_path / "x", content)
    blocks = list(read_blocks(PackedFile(path), block_bytes=100_000))
    found = [record for block in blocks for record in records(block)]
    assert len(blocks) > 5
    assert [turns for _, turns, _ in found] == dialogues
    if form in ("jsonl", "tsv"):
        assert [number for number, _, _ in found] == list(range(1, 30_001))


def test_records_that_cannot_be_read_are_counted_with_their_line(tmp_path):
    good = json.dumps(SPACED[0], ensure_ascii=False).encode()
    bad = [
        b'["a", "b',
        b'{"x": 1}',
        b'["a", 3]',
        b"\xff\xfe\xff",
        b'"text"',
        b'["a", ' + b"9" * 5000 + b"]",
        b"[" * 5000,
    ]
    path = write(tmp_path / "x.jsonl", b"\n".join([good, *bad, b"", good]))
    found = list(read_records(path))
    reasons = ["not_json", *["not_a_list_of_strings"] * 2, "not_text", "not_a_list_of_strings", "not_json", "not_json"]
    assert [reason for _, _, reason in found] == [None, *reasons, None]
    assert [number for number, _, _ in found] == [1, 2, 3, 4, 5, 6, 7, 8, 10]


def test_nul_bytes_surrogates_and_mixed_encodings_are_read(tmp_path):
    parts = [
        b'["\\ud800a", "b"]',
        '["你好", "好"]'.encode(),
        '["你好", "好"]'.encode("gb18030"),
        b"\0\0",
        b'["a\0", "b"]',
    ]
    found = list(read_records(write(tmp_path / "x.jsonl", b"\n".join(parts))))
    assert [turns for _, turns, _ in found] == [["\ud800a", "b"], ["你好", "好"], ["你好", "好"], None]
    assert found[-1][2] == "not_json"
    assert turns_of(write(tmp_path / "x.tsv", b"a\0\tb\n\xed\xa0\x80\tc\n")) == [["a\0", "b"], ["\ufffd", "c"]]


def test_a_line_of_50_mb_is_a_counted_skip(tmp_path):
    path = write(tmp_path / "x.jsonl", b'["a", "b"]\n["' + b"x" * (50 << 20) + b'", "y"]\n["c", "d"]\n')
    found = list(read_records(path))
    assert found == [(1, ["a", "b"], None), (2, None, "line_too_long"), (3, ["c", "d"], None)]


def test_a_dialogue_of_10_000_turns_is_one_record(tmp_path):
    turns = [f"第{number}句" for number in range(10_000)]
    assert turns_of(write(tmp_path / "x.jsonl", lines([turns]))) == [turns]


def gzip_damaged() -> bytes:
    data = bytearray(gzip.compress(random.Random(0).randbytes(2000)))
    data[20:400] = b"\xff" * 380
    return bytes(data)


MANY = (lines(SPACED) * 3000).encode()
BAD = {
    "empty": (b"", "is empty"),
    "blank": (b"\n \n", "is empty"),
    "empty gzip": (gzip.compress(b""), "is empty"),
    "cut array": (b'[["a", "b"], ["c", ', "not complete JSON"),
    "cut in a string": (b'[["a", "b"], ["c", "d', "not complete JSON"),
    "text after the array": (b'[["a", "b"]]\n[["c", "d"]]', "text follows"),
    "cut gzip": (gzip.compress(MANY)[:-100], "cut short"),
    "gzip without its end": (gzip.compress(MANY)[:-6], "cut short"),
    "gzip with a wrong tail": (gzip.compress(MANY)[:-8] + b"\1" * 8, "damaged"),
    "gzip with more behind": (gzip.compress(MANY) + b"abc", "damaged"),
    "damaged gzip": (gzip_damaged(), "damaged"),
    "cut xz": (lzma.compress(MANY)[:-9], "cut short"),
    "cut zst": (zstandard.compress(MANY)[:-9], "cut short"),
    "one object": (b'{\n "a": 1\n}', "one JSON object"),
    "one list": (b'[\n "a",\n "b"\n]', "one JSON list"),
    "deep": (b"[" * 100_000, "too deeply"),
    "mixed array": ('[["你好", "'.encode("gb18030") + b"\xff" * 9 + b'"]]', "neither UTF-8 nor GB18030"),
    "zip": (b"PK\x03\x04" + bytes(99), "is not text"),
    "packed twice": (gzip.compress(gzip.compress(MANY)), "is not text"),
    "UTF-16 without a mark": ("你好\tok".encode("utf-16-le") * 9, "is not text"),
    "half of UTF-16": (b"\xff\xfe" + "你好".encode("utf-16-le")[:-1], "UTF-16"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path, name):
    content, says = BAD[name]
    path = write(tmp_path / "x", content)
    with pytest.raises(FileError, match=says) as error:
        turns_of(path)
    assert str(path) in str(error.value)


def test_a_file_that_changes_while_it_is_read_is_noticed(tmp_path):
    path = write(tmp_path / "x.jsonl", MANY * 40)
    file, before = PackedFile(path), sha256_of(path)
    blocks = read_blocks(file)
    next(blocks)
    with path.open("r+b") as writer:
        writer.truncate(len(MANY) * 30)
    list(blocks)
    with pytest.raises(FileError, match="changed while it was read"):
        file.check_unchanged(before)


def test_list_files_takes_folders_and_refuses_what_is_not_there(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    paths = [write(tmp_path / "a" / "b" / "2.txt", "x"), write(tmp_path / "a" / "1.jsonl.zst", "x")]
    write(tmp_path / "a" / "picture.png", "x")
    assert list_files([tmp_path / "a"]) == sorted(paths)
    with pytest.raises(FileError, match="does not exist"):
        list_files([tmp_path / "nothing"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileError, match="not a regular file or folder"):
        list_files(["/dev/null"])
    with pytest.raises(FileError, match="holds no file"):
        list_files([tmp_path / "empty"])


def test_memory_holds_a_block_and_not_the_file(tmp_path):
    """An array of 24 MB on one line, read with a peak far below its size."""
    import tracemalloc

    path = tmp_path / "big.json.gz"
    one = json.dumps([["你 好 " * 50, "好 " * 50]] * 1000, ensure_ascii=False)[1:-1]
    path.write_bytes(gzip.compress(f"[{','.join([one] * 30)}]".encode(), 1))
    tracemalloc.start()
    count = sum(len(list(records(block))) for block in read_blocks(PackedFile(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 5 * formats.BLOCK_BYTES
