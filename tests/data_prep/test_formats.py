from __future__ import annotations

import bz2
import gzip
import json
import lzma
import random
import time
import tracemalloc

import pytest
import zstandard

from chatbot.errors import FileError
from chatbot.text.dialogue_files import dialogue_files
from chatbot.text.packed_files import PackedFile
from data_prep.cli import main as prepare
from data_prep.reading import chat_logs, formats
from data_prep.reading import records as record_reading
from data_prep.reading.files import list_files, sha256_of
from data_prep.reading.formats import read_blocks, records
from data_prep.reading.records import merge_speakers
from tests.records import read_records

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
    entries = list(read_records(write(tmp_path / "x", first + "\n" + lines(SPACED * 3))))
    assert [turns for _, turns, _ in entries] == [None, *SPACED * 3]


@pytest.mark.parametrize("key", ["messages", "train", "name"])
@pytest.mark.parametrize("turns_of_first", [3000, 9000])
def test_json_lines_may_begin_with_a_long_dialogue(tmp_path, key, turns_of_first):
    """The first line is longer than the head by which other forms are recognised."""
    first = messages([f"第{number}句话说完了" for number in range(turns_of_first)])
    begins = {"messages": {}, "train": {"train": "yes"}, "name": {"name": "小海"}}[key]
    values = [{**begins, "messages": first}, *({"messages": messages(turns)} for turns in SPACED * 1000)]
    read = turns_of(write(tmp_path / "a.jsonl", lines(values)))
    assert len(read) == len(values)
    assert len(read[0]) == turns_of_first
    assert read[1] == SPACED[0]


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
    path = write(tmp_path / "x", b'[["a", "b"], ["' + b"x" * (40 << 20) + b'", "y"]]')
    start = time.process_time()
    with pytest.raises(FileError, match="element of more than 16 million"):
        turns_of(path)
    assert time.process_time() - start < 10


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_a_number_of_more_digits_than_python_reads_stops_nothing(tmp_path, name):
    dialogues = ['["你好", "嗨"]', "9" * 5000, '["在吗", "在"]']
    content = f"[{', '.join(dialogues)}]" if name == "a.json" else "\n".join(dialogues)
    turns = turns_of(write(tmp_path / name, content))
    assert [turn for turn in turns if turn] == [["你好", "嗨"], ["在吗", "在"]]


def test_what_one_speaker_says_in_a_row_is_one_turn():
    assert merge_speakers([("a", "你好"), ("a", "在吗"), ("b", "在。"), ("b", "怎么"), ("a", "")]) == [
        "你好，在吗",
        "在。 怎么",
        "",
    ]


@pytest.mark.parametrize(
    ("clocks", "hours"),
    [
        (("11:50 PM", "12:10 AM"), (23, 0)),
        (("11:50 AM", "12:10 PM"), (11, 12)),
        (("上午11:50", "上午12:10"), (11, 0)),
        (("下午 11:50", "凌晨12:10"), (23, 0)),
        (("中午12:10", "下午1:10"), (12, 13)),
        (("晚上11:50", "晚上12:10"), (23, 0)),
        (("下午14:30", "晚上0:10"), (14, 0)),
        (("9:05", "23:59:59"), (9, 23)),
    ],
)
def test_clocks_of_twelve_hours(clocks, hours):
    times = [chat_logs.parse_time(f"2026/11/20 {clock}") for clock in clocks]
    assert [time.hour for time in times] == list(hours)


def test_midnight_is_not_a_silence_of_half_a_day(tmp_path):
    log = "2026/11/20 11:50 PM - 小明: 在吗\n2026/11/21 12:10 AM - 小红: 在\n2026/11/21 12:11 AM - 小明: 睡了吗\n"
    assert turns_of(write(tmp_path / "x", log)) == [["在吗", "在", "睡了吗"]]


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
    entries = [record for block in blocks for record in records(block)]
    assert len(blocks) > 5
    assert [turns for _, turns, _ in entries] == dialogues
    if form in ("jsonl", "tsv"):
        assert [number for number, _, _ in entries] == list(range(1, 30_001))


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
    entries = list(read_records(path))
    shapes = ["object_without_turns", "not_a_list_of_strings", "not_text", "not_a_list_of_strings"]
    reasons = ["not_json", *shapes, "not_json", "not_json"]
    assert [reason for _, _, reason in entries] == [None, *reasons, None]
    assert [number for number, _, _ in entries] == [1, 2, 3, 4, 5, 6, 7, 8, 10]


def test_nul_bytes_surrogates_and_mixed_encodings_are_read(tmp_path):
    parts = [
        b'["\\ud800a", "b"]',
        '["你好", "好"]'.encode(),
        '["你好", "好"]'.encode("gb18030"),
        b"\0\0",
        b'["a\0", "b"]',
    ]
    entries = list(read_records(write(tmp_path / "x.jsonl", b"\n".join(parts))))
    assert [turns for _, turns, _ in entries] == [["\ufffda", "b"], ["你好", "好"], ["你好", "好"], None]
    assert entries[-1][2] == "not_json"
    assert turns_of(write(tmp_path / "x.tsv", b"a\0\tb\n\xed\xa0\x80\tc\n")) == [["a\0", "b"], ["\ufffd", "c"]]


def test_a_line_of_50_mb_is_a_counted_skip(tmp_path):
    path = write(tmp_path / "x.jsonl", b'["a", "b"]\n["' + b"x" * (50 << 20) + b'", "y"]\n["c", "d"]\n')
    entries = list(read_records(path))
    assert entries == [(1, ["a", "b"], None), (2, None, "line_too_long"), (3, ["c", "d"], None)]


@pytest.mark.parametrize("form", ["jsonl", "text", "chatlog"])
@pytest.mark.parametrize("pack", [bz2.compress, zstandard.compress], ids=["bz2", "zst"])
def test_a_line_without_end_stops_the_build_soon_and_in_bounded_memory(tmp_path, pack, form):
    """Some kilobytes that hold 4 GB."""
    path = write(tmp_path / "x", pack(b'["a", "b"]\n') + pack(b"a" * (40 << 20)) * 100)
    tracemalloc.start()
    start = time.process_time()
    with pytest.raises(FileError, match="has a line of more than 256 MB"):
        list(read_blocks(PackedFile(path), form))
    assert time.process_time() - start < 20
    assert tracemalloc.get_traced_memory()[1] < 120 << 20
    tracemalloc.stop()


def test_white_space_without_end_is_one_sentence(tmp_path):
    path = write(tmp_path / "x", gzip.compress(b" \n" * (20 << 20)))
    with pytest.raises(FileError, match="begins with more than 16 MB of white space"):
        turns_of(path)


LOG = "小明 2026-11-20 09:00\n在吗\n小红 2026-11-20 09:01\n在\n小明 2026-11-20 09:02\n"
AFTER = "小红 2026-11-20 09:03\n好\n小明 2026-11-20 09:04\n再见\n"


def test_a_chat_log_without_headers_is_read_in_linear_time(tmp_path):
    lines = "这一行没有名字也没有时间\n" * 300_000
    path = write(tmp_path / "x", LOG + lines + AFTER)
    start = time.process_time()
    (record,) = read_records(path, "chatlog")
    assert time.process_time() - start < 10  # 0.5 s; quadratic time would be minutes
    assert [len(turn) for turn in record.turns] == [2, 1, 300_000 * 13 - 1, 1, 2]


def test_messages_and_dialogues_without_end_are_cut(tmp_path, monkeypatch):
    monkeypatch.setattr(record_reading, "MAX_DIALOGUE_CHARACTERS", 100)
    path = write(tmp_path / "x", LOG + "一二三四\n" * 30 + AFTER)
    assert [(turns, reason) for _, turns, reason in read_records(path, "chatlog")] == [
        (["在吗", "在"], None),
        (None, "line_too_long"),
        (["好", "再见"], None),
    ]
    path = write(tmp_path / "x", LOG.replace("在吗", "一" * 99) + AFTER)
    assert [len(turns) for _, turns, _ in read_records(path, "chatlog")] == [2, 2]  # not the message without text
    path = write(tmp_path / "x", "".join(f"{'字' * 60}\n" for _ in range(5)))
    assert [len(turns) for _, turns, _ in read_records(path, "text")] == [2, 2, 1]


@pytest.mark.parametrize("text", ["a" + " " * (1 << 20), "2026-11-20 09:00" + " " * (1 << 20) + "a", " " * (1 << 20)])
def test_white_space_does_not_slow_the_search_for_headers(text):
    start = time.process_time()
    chat_logs.parse_header(text)
    assert time.process_time() - start < 1


def test_a_long_message_on_the_line_of_its_header_is_read():
    header = chat_logs.parse_header("2026-11-20 09:00 小明: " + "好" * 2000)
    assert (header.name, len(header.text)) == ("小明", 2000)
    assert chat_logs.parse_header("2026-11-20 09:00 小明" + " " * 600 + "好") is None


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
    "text after the object": (
        b'{\n"messages": [{"role": "user", "content": "a"}]\n}\n{"messages": []}',
        "--format jsonl",
    ),
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


def test_links_that_leave_a_folder_are_refused(tmp_path, capsys):
    """A folder from elsewhere may link to any file of this machine; a file that the user names may be a link."""
    folder, secret = tmp_path / "elsewhere", write(tmp_path / "secret.txt", "甲：你好\n乙：你好呀\n")
    (folder / "deep").mkdir(parents=True)
    inside = write(folder / "deep" / "talk.txt", "甲：你好\n乙：你好呀\n")
    (folder / "again.txt").symlink_to(inside)
    assert list_files([folder]) == [folder / "again.txt", inside]
    (folder / "picture").symlink_to(secret)  # its suffix is not that of a dialogue file
    (folder / "all").symlink_to(tmp_path, target_is_directory=True)  # linked folders are not entered
    assert list_files([folder]) == [folder / "again.txt", inside]
    for target in (secret, "../../secret.txt", "/etc/passwd", "/dev/zero", tmp_path / "nothing", "circle.jsonl"):
        link = folder / "deep" / "circle.jsonl"
        link.symlink_to(target)
        if target != "circle.jsonl":
            for read in (list_files, lambda paths: dialogue_files(paths[0])):
                with pytest.raises(FileError, match="is a link to a file outside"):
                    read([folder])
            assert prepare(["--input", str(folder), "--output", str(tmp_path / "set")]) == 1
            assert "circle.jsonl is a link to a file outside" in capsys.readouterr().err
        else:
            assert list_files([folder]) == [folder / "again.txt", inside]
        link.unlink()
    (tmp_path / "named.txt").symlink_to(secret)
    (tmp_path / "folder").symlink_to(folder, target_is_directory=True)
    assert list_files([tmp_path / "named.txt", tmp_path / "folder"])[0] == tmp_path / "named.txt"


def test_memory_holds_a_block_and_not_the_file(tmp_path):
    """An array of 24 MB on one line, read with a peak far below its size."""
    path = tmp_path / "big.json.gz"
    thousand = json.dumps([["你 好 " * 50, "好 " * 50]] * 1000, ensure_ascii=False)[1:-1]
    path.write_bytes(gzip.compress(f"[{','.join([thousand] * 30)}]".encode(), 1))
    tracemalloc.start()
    count = sum(len(list(records(block))) for block in read_blocks(PackedFile(path)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 30_000
    assert peak < 5 * formats.BLOCK_BYTES
