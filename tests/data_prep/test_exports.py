"""What people really have: exports of chat programs, tables and JSON in many shapes, read as what was said."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from chatbot.errors import FileError
from chatbot.text.characters import simplified
from data_prep.cli import main
from data_prep.reading import messages as message_reading
from data_prep.reading.chat_logs import read_chat_log
from data_prep.reading.formats import splits_of
from data_prep.reading.json_shapes import to_turns
from data_prep.reading.not_speech import is_system, speech
from tests.records import read_records

HIKE = ["周末去爬山吗", "好啊，几点出发", "早上七点怎么样", "可以的，我带水"]


def turns_of(path, content, form="auto", bot=None):
    from chatbot.text.packed_files import PackedFile
    from data_prep.reading.formats import read_blocks, records

    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    blocks = read_blocks(PackedFile(path), form, bot=bot)
    return [record.turns for block in blocks for record in records(block)]


def recorded(path, content, bot):
    """Return turns and reason of each record, without notices."""
    from chatbot.text.packed_files import PackedFile
    from data_prep.reading.formats import read_blocks

    path.write_text(content, encoding="utf-8")
    every = [record for block in read_blocks(PackedFile(path), bot=bot) for record in block.records]
    return [(record.turns, record.reason) for record in every if record.reason != "not_speech"]


QQ = """消息记录（此消息记录为文本格式，不支持重新导入）

================================================================
消息分组:我的好友
================================================================
消息对象:小海
================================================================

2023-05-01 10:00:00 小海
周末去爬山吗

2023-05-01 10:00:30 阿木(10001)
好啊，几点出发

2023-05-01 10:01:00 小海
10:30

2023-05-01 10:01:10 小海
早上七点怎么样

================================================================
消息分组:我的好友
================================================================
消息对象:小红
================================================================

2023-05-01 10:02:00 小红
在吗

2023-05-01 10:02:30 阿木(10001)
在的
"""


def test_a_qq_export_with_its_headings(tmp_path):
    assert turns_of(tmp_path / "x.txt", QQ) == [
        ["周末去爬山吗", "好啊，几点出发", "10:30，早上七点怎么样"],
        ["在吗", "在的"],
    ]


WECHAT = """2024-03-01 20:01:02 以上是打招呼的内容

2024-03-01 20:01:03 你已添加了小海，现在可以开始聊天了。

2024-03-01 20:02:00 小海
周末去爬山吗

2024-03-01 20:02:10 小海
[图片]

2024-03-01 20:03:00 阿木
好啊，几点出发
引用:小海:周末去爬山吗

2024-03-01 20:03:30 "小海" 撤回了一条消息

2024-03-01 20:04:00 小海
早上七点怎么样

2024-03-01 20:04:20 阿木
[表情包]

2024-03-01 20:04:30 阿木
可以的，我带水
[语音]

2024-03-01 20:05:00 小海
            [链接]:title:香山一日游攻略
            description:最全的路线
            url:https://example.com/a?b=1
            name:某小程序

2024-03-01 20:06:00 阿木
这个攻略不错
"""


def test_a_wechat_export_without_what_nobody_said(tmp_path):
    """The reply to a link that cannot be seen does not go on with the speaker's own last message."""
    assert turns_of(tmp_path / "x.txt", WECHAT) == [HIKE, ["这个攻略不错"]]


@pytest.mark.parametrize("name", ["小海:阿木", "【管理员】小海", "[小海]", "小海 (1)", "A：B"])
def test_names_with_brackets_and_colons(tmp_path, name):
    log = (
        f"2024-03-01 20:02:00 {name}\n在吗\n\n2024-03-01 20:03:00 阿木\n在的\n\n2024-03-01 20:04:00 {name}\n出来玩\n\n"
    )
    assert turns_of(tmp_path / "x.txt", log * 2) == [["在吗", "在的", "出来玩，在吗", "在的", "出来玩"]]


def test_a_message_that_looks_like_another_programs_header_stays_a_message(tmp_path):
    log = "小海 2024-03-01 20:02:00\n{}\n阿木 2024-03-01 20:03:00\n好的\n"
    for message in ("10:30 老地方", "20:00 - 小海: 见", "明天 8:00"):
        assert turns_of(tmp_path / "x.txt", log.format(message) * 3)[0][0] == message


TEXTS = {
    "LINE": "[LINE] 與小海的聊天記錄\n儲存日期：2024/03/02 10:00\n\n2024/03/01（五）\n"
    "20:02\t小海\t周末去爬山吗\n20:03\t阿木\t好啊，几点出发\n"
    '20:04\t小海\t[貼圖]\n20:05\t小海\t早上七点怎么样\n20:06\t阿木\t"可以的\n我带水"\n',
    "WhatsApp on iOS": "[2024/3/1 下午8:02:01] 小海: \u200e消息和通话已进行端到端加密。\n"
    "[2024/3/1 下午8:02:05] 小海: 周末去爬山吗\n[2024/3/1 下午8:03:00] 阿木: 好啊，几点出发\n"
    "[2024/3/1 下午8:05:00] 小海: 早上七点怎么样\n\u200e[2024/3/1 下午8:05:01] 小海: "
    "\u200e图像已忽略\n[2024/3/1 下午8:06:00] 阿木: 可以的，我带水\n",
    "fields": "====\n QQ聊天记录导出文件\n====\n\n聊天名称: 小海\n聊天类型: 私聊\n\n"
    + "".join(
        f"{name}:\n时间: 2024-12-31 20:0{i}:00\n内容: {text}\n资源: 1 个文件\n  - image: a.jpg\n\n"
        for i, (name, text) in enumerate(zip(["小海", "阿木"] * 2, HIKE, strict=True))
    ),
    "names": "".join(f"{name}:\n{text}\n\n" for name, text in zip(["小海", "阿木"] * 2, HIKE, strict=True)),
    "prefixes": "\n".join(f"{name}：{text}" for name, text in zip("ABAB", HIKE, strict=True)),
    "prefixes in Latin": "\n".join(f"{name}: {text}" for name, text in zip(["User", "Bot"] * 2, HIKE, strict=True)),
    "markdown": "# 2025-01-02\n\n"
    + "".join(
        f"### {name}\n* 20:0{i}:11 {text}\n\n"
        for i, (name, text) in enumerate(zip(["小海", "阿木"] * 2, HIKE, strict=True))
    ),
    "IRC": "".join(f"[20:0{i}] <{name}> {text}\n" for i, (name, text) in enumerate(zip("甲乙甲乙", HIKE, strict=True))),
    "conv": "E\n" + "".join(f"M {text}\n" for text in HIKE),
    "WeChatMsg CSV": "\ufefflocalId,TalkerId,Type,SubType,IsSender,CreateTime,Status,"
    "StrContent,StrTime,Remark,NickName,Sender\n"
    "1,2,1,0,0,1709294520,3,周末去爬山吗,2024-03-01 20:02:00,,,\n"
    '2,2,3,0,0,1709294530,3,"<?xml version=""1.0""?><msg />",2024-03-01 20:02:10,,,\n'
    "3,2,1,0,1,1709294580,2,好啊，几点出发,2024-03-01 20:03:00,,,\n"
    '4,2,10000,0,0,1709294610,4,"""小海"" 撤回了一条消息",2024-03-01 20:03:30,,,\n'
    "5,2,1,0,0,1709294640,3,早上七点怎么样,2024-03-01 20:04:00,,,\n"
    "6,2,1,0,1,1709294660,2,可以的，我带水,2024-03-01 20:04:20,,,\n",
    "CSV of messages": "发送者,内容,时间\n"
    + "".join(f"{n},{t},2024-03-01 20:0{i}:00\n" for i, (n, t) in enumerate(zip("甲乙甲乙", HIKE, strict=True))),
    "JSON lines of messages": "".join(
        json.dumps({"type": "message", "sender": name, "time": f"2024-03-01 20:0{i}:00", "content": text}) + "\n"
        for i, (name, text) in enumerate(zip(["小海", "阿木"] * 2, HIKE, strict=True))
    ),
    "Telegram": json.dumps(
        {
            "name": "小海",
            "type": "personal_chat",
            "messages": [
                {"id": 0, "type": "service", "actor": "阿木", "action": "create_group"},
                *(
                    {
                        "id": i,
                        "type": "message",
                        "date": f"2024-01-01T10:00:1{i}",
                        "from": name,
                        "text": [{"type": "plain", "text": text}],
                    }
                    for i, (name, text) in enumerate(zip(["小海", "阿木"] * 2, HIKE, strict=True))
                ),
            ],
        },
        indent=1,
    ),
    "Telegram, a whole account": json.dumps(
        {
            "about": "x",
            "chats": {
                "list": [
                    {"name": "y", "messages": [{"from": n, "text": t} for n, t in zip("甲乙甲乙", HIKE, strict=True)]}
                ]
            },
        }
    ),
    "Discord": json.dumps(
        {
            "guild": {"id": "1"},
            "messages": [
                {
                    "id": str(i),
                    "type": "Default",
                    "timestamp": f"2024-01-01T10:00:0{i}+08:00",
                    "content": text,
                    "author": {"id": n, "name": n},
                }
                for i, (n, text) in enumerate(zip("甲乙甲乙", HIKE, strict=True))
            ],
        }
    ),
    "one array of messages": json.dumps(
        [{"role": n, "content": t} for n, t in zip(["user", "assistant"] * 2, HIKE, strict=True)]
    ),
}


@pytest.mark.parametrize("name", TEXTS)
def test_an_export_is_read_as_what_was_said(tmp_path, name):
    expected = [[turn.replace(" ", "，") if "LINE" in name else turn for turn in HIKE]]
    dialogues = turns_of(tmp_path / "export", TEXTS[name])
    assert [[turn.replace("可以的 我带水", "可以的，我带水") for turn in turns] for turns in dialogues] == expected


PAIRS = {
    "header": '\ufeff问题,回答\n你叫什么名字,我叫小白\n今天天气怎么样,"晴天，很热"\n',
    "header in English": 'id,question,answer\n1,你叫什么名字,我叫小白\n2,今天天气怎么样,"晴天，很热"\n',
    "semicolons": "question;answer\n你叫什么名字;我叫小白\n今天天气怎么样;晴天，很热\n",
    "bars": "你叫什么名字 | 我叫小白\n今天天气怎么样 | 晴天，很热\n",
    "tabs with a header": "question\tanswer\n你叫什么名字\t我叫小白\n今天天气怎么样\t晴天，很热\n",
    "no header": '你叫什么名字,我叫小白\n今天天气怎么样,"晴天，很热"\n',
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("encoding", ["utf-8", "gb18030", "utf-16"])
def test_a_table_of_pairs(tmp_path, name, encoding):
    content = PAIRS[name].lstrip("\ufeff").encode(encoding)
    assert turns_of(tmp_path / "x.csv", content) == [["你叫什么名字", "我叫小白"], ["今天天气怎么样", "晴天，很热"]]


def test_several_contacts_in_one_table_do_not_mix(tmp_path):
    rows = ["IsSender,TalkerId,StrContent,StrTime"]
    for minute, (sender, talker, text) in enumerate(
        [(0, 1, "在吗"), (0, 2, "吃了吗"), (1, 1, "在的"), (1, 2, "吃了"), (0, 1, "出来玩"), (0, 2, "吃的什么")]
    ):
        rows.append(f"{sender},{talker},{text},2024-03-01 20:0{minute}:00")
    assert turns_of(tmp_path / "x.csv", "\n".join(rows)) == [["在吗", "在的", "出来玩"], ["吃了吗", "吃了", "吃的什么"]]


def test_an_unknown_table_is_refused_with_its_columns(tmp_path):
    with pytest.raises(
        FileError, match=r"The columns of .* \(id, foo, bar\) are not known. Name them question and answer"
    ):
        turns_of(tmp_path / "x.csv", "id,foo,bar\n1,a,b\n2,c,d\n")


REFUSED = {
    "subtitles": (
        "1\n00:00:01,000 --> 00:00:03,000\n你今天去哪里了\n\n2\n00:00:03,500 --> 00:00:05,000\n公园\n",
        "subtitles",
    ),
    "a web page": ("<!DOCTYPE html><html><body>你好</body></html>", "web page"),
    "an archive of a page": ("MIME-Version: 1.0\nContent-Type: multipart/related\n\n你好", "web page"),
    "rich text": ("{\\rtf1\\ansi 你好}", "rich text"),
    "times": ("".join(f"{i}:00:00|小海|你好{i}\n" for i in range(10, 20)), "times on 10 of 10 lines"),
    "an object": ('{"a": 1,\n"b": [1, 2]}\n', "one JSON object without dialogues"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_not_known_is_refused_in_words(tmp_path, name):
    content, words = REFUSED[name]
    with pytest.raises(FileError, match=words):
        turns_of(tmp_path / "x.txt", content)


def test_splits_of_a_file_are_kept(tmp_path, capsys):
    dialogues = [[f"第{i}句话你好", "嗯嗯好的"] for i in range(30)]
    data = {"valid": dialogues[:4], "train": dialogues[4:]}
    for indent in (None, 1):
        path = tmp_path / f"toy{indent}.json"
        path.write_text(json.dumps(data, ensure_ascii=False, indent=indent), encoding="utf-8")
        assert splits_of(path) == ("train", "valid")
        assert len(list(read_records(path))) == 30
        output = tmp_path / f"set{indent}"
        assert main(["--input", str(path), "--output", str(output), "--vocab-size", "600", "--json"]) == 0
        splits = json.loads(capsys.readouterr().out)["splits"]
        assert (splits["train"]["dialogues"], splits["valid"]["dialogues"]) == (26, 4)


EXPORTS = Path(__file__).with_name("exports")
"""Exports of many programs, written by somebody who had not seen the reader; expected.json says what was said."""
UNKNOWABLE = {"m18_trap_sentences.txt", "m19_trap_recipe.txt"}
"""Plain lines that look like one turn each; only their sense says that they are not a dialogue."""


def without_marks(text):
    return re.sub(r"[\s，,。]+", "", text)


@pytest.mark.parametrize("name", sorted(path.name for path in EXPORTS.glob("*.*") if path.name != "expected.json"))
def test_exports_by_another_hand_give_what_was_said(name):
    """Compared without white space and commas; where dialogues are cut at unseen pictures is not compared."""
    expected = json.loads((EXPORTS / "expected.json").read_text(encoding="utf-8"))[name]
    try:
        records = list(read_records(EXPORTS / name))
    except FileError:
        assert "refuse" in expected
        return
    if "refuse" in expected:
        assert name in UNKNOWABLE or all(record.turns is None for record in records)
        return
    right = [
        without_marks("".join(turn["parts"]) if isinstance(turn, dict) else turn)
        for turns in expected["right"]
        for turn in turns
    ]
    actual = [without_marks(turn) for record in records for turn in record.turns or []]
    single = [without_marks(record.turns[0]) for record in records if record.turns and len(record.turns) == 1]
    assert [turn for turn in actual if turn in right] == [turn for turn in right if turn in actual]
    assert not set(right) - set(actual)
    assert set(actual) - set(right) <= set(single)  # the reply to a picture, alone in its dialogue, is never trained on


SHAPES = [
    ({"conversation": [{"human": "你好", "assistant": "你好呀"}]}, ["你好", "你好呀"]),
    ({"items": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}, ["a", "b"]),
    ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}]}, ["a"]),
    (
        {
            "messages": [
                {"role": "user", "content": "几点了"},
                {"role": "assistant", "content": None, "tool_calls": []},
                {"role": "tool", "content": "10:00"},
                {"role": "assistant", "content": "十点了"},
            ]
        },
        ["几点了", "十点了"],
    ),
    ({"instruction": "你叫什么", "input": None, "output": "小明", "history": None}, ["你叫什么", "小明"]),
    ({"instruction": "写", "input": "", "chosen": "好", "rejected": "坏"}, ["写", "好"]),
    ({"question": "早", "answers": ["早呀", "早"]}, ["早", "早呀"]),
    ({"q": "a", "a": "b"}, ["a", "b"]),
    ({"post": "热", "response": "是啊"}, ["热", "是啊"]),
    ({"kind": "Chat", "input": "a", "target": "b"}, ["a", "b"]),
    ({"messages": [{"message": "a", "attrs": []}, {"message": "b", "attrs": []}]}, ["a", "b"]),
    ({"content": ["a", "b"]}, ["a", "b"]),
    ({"context": ["a", "b"], "response": "c"}, ["a", "b", "c"]),
    ({"history": ["a", "b"], "query": "c", "response": "d"}, ["a", "b", "c", "d"]),
    (
        {
            "prompt": "c",
            "response": "d",
            "history": [{"role": "user", "content": "a"}, {"role": "bot", "content": "b"}],
        },
        ["a", "b", "c", "d"],
    ),
    (
        {
            "chat": {
                "turn_2": {"Human": "c", "MOSS": "d"},
                "turn_1": {"Human": "<|Human|>: a<eoh>\n", "MOSS": "<|MOSS|>: b<eom>"},
            }
        },
        ["a", "b", "c", "d"],
    ),
    ({"instruction": "Human:a\nAssistant:b\nHuman:c\nAssistant:", "input": "", "output": "d"}, ["a", "b", "c", "d"]),
    (
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<think>想\n</think>\n\nb"}]},
        ["a", "b"],
    ),
    ({"text": "今天天气真好。"}, None),
    ({"x": 1}, None),
    ([{"role": "user", "content": 3}], None),
]


@pytest.mark.parametrize(("value", "turns"), SHAPES)
def test_shapes_of_json(value, turns):
    assert to_turns(value) == turns


def test_what_holds_no_dialogue_is_counted_by_its_shape(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('["a", "b"]\n{"text": "今天"}\n{"x": 1}\n[3]\n')
    assert [record.reason for record in read_records(path)] == [
        None,
        "text_without_a_reply",
        "object_without_turns",
        "not_a_list_of_strings",
    ]


def test_encodings_and_line_ends_of_old_programs(tmp_path):
    text = "你好嗎\n我很好，你呢\n\n今天天氣怎麼樣\n還不錯\n"
    expected = [["你好嗎", "我很好，你呢"], ["今天天氣怎麼樣", "還不錯"]]
    assert turns_of(tmp_path / "x", text.encode("big5")) == expected
    assert turns_of(tmp_path / "x", text.encode("gb18030")) == expected
    assert turns_of(tmp_path / "x", text.replace("\n", "\r")) == expected
    assert turns_of(tmp_path / "x", ("\ufeff" + text + "\n\ufeff" + text).encode()) == expected * 2
    assert turns_of(tmp_path / "x.jsonl", '["你好\\ud83d呀", "好的"]\n') == [["你好\ufffd呀", "好的"]]


def test_the_bots_turns_come_second(tmp_path):
    log = tmp_path / "x.txt"
    content = QQ + "2023-05-01 10:03:00 小红\n走了\n\n2023-05-02 10:02:30 阿木(10001)\n早\n"
    told = recorded(log, content, bot="小海")
    assert told == [
        (["周末去爬山吗"], "bot_speaks_first"),
        (["好啊，几点出发", "10:30，早上七点怎么样"], None),
        (["在吗，在的，走了"], "bot_does_not_reply"),
        (["早"], "bot_does_not_reply"),
    ]
    assert recorded(log, content, bot="阿木") == [
        (["周末去爬山吗", "好啊，几点出发", "10:30，早上七点怎么样"], None),
        (["在吗", "在的", "走了"], None),
        (["早"], "bot_does_not_reply"),
    ]
    with pytest.raises(FileError, match=r"小明 says nothing in a file. .*阿木\(10001\) \(3\)"):
        turns_of(log, content, bot="小明")
    with pytest.raises(FileError, match="does not name the speakers"):
        turns_of(tmp_path / "x.jsonl", '["a", "b"]\n', bot="小明")


def test_a_set_that_looks_like_an_unread_log_is_not_built_in_silence(tmp_path, capsys):
    def errors(dialogues):
        path = tmp_path / "x.jsonl"
        path.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues), encoding="utf-8")
        flags = ["--input", str(path), "--output", str(tmp_path / "set"), "--valid-share", "0"]
        assert main([*flags, "--vocab-size", "600", "--overwrite"]) == 0
        return capsys.readouterr().err

    plain = [[f"第{i}句话你好", "嗯嗯好的"] for i in range(40)]
    assert "warning" not in errors(plain)
    assert "hold a time of day" in errors([[f"10:{i} 小海", turns[1]] for i, turns in enumerate(plain)])
    assert "begin with “小海:”" in errors([[f"小海: {turns[0]}", f"阿木: {turns[1]}"] for turns in plain])
    assert "private-use characters" in errors([[turns[0] + "\ue412", turns[1]] for turns in plain])


SYSTEM = [
    "你撤回了一条消息",
    '"小海" 拍了拍我',
    "通话时长 03:12",
    "对方已取消",
    "收到红包，请在手机上查看",
    "小红加入了群聊",
    "我通过了你的朋友验证请求，现在我们可以开始聊天了",
]
SPEECH = [
    "我撤回刚才说的话",
    "他拍了拍我的肩膀，说没事的，然后就走了，我到现在还记得那天下午的太阳" * 2,
    "通话吧",
    "已经取消订单了你再看看",
    "我加入了篮球社",
    "转账给你了",
]


def test_messages_of_the_program_are_told_from_speech():
    assert [text for text in SYSTEM if not is_system(text)] == []
    assert [text for text in SPEECH if is_system(text)] == []
    assert speech("[图片]好看吗") == "好看吗"
    assert speech("[文件] 报告.docx") == ""
    assert speech("「小海：我马上到」\n- - - - - - - - - - - - - - -\n好的等你") == "好的等你"
    assert speech("[捂脸]哈哈") == "哈哈"
    assert speech("\u200e图像已忽略") == ""


def test_many_chats_at_a_time_are_bounded(tmp_path, monkeypatch):
    monkeypatch.setattr(message_reading, "MAX_CHATS", 3)
    rows = ["sender,content,chat_id"] + [f"{i % 2},第{i}句,{i % 5}" for i in range(20)]
    assert all(len(turns) <= 2 for turns in turns_of(tmp_path / "x.csv", "\n".join(rows)))


def test_a_log_is_read_in_linear_time_and_memory():
    lines = ((i, line) for i in range(30_000) for line in (f"2024-03-01 20:02:00 小海{i % 2}", "在吗在吗", ""))
    import time

    start = time.process_time()
    count = sum(len(record.turns) for record in read_chat_log(lines))
    assert count == 30_000
    assert time.process_time() - start < 20


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("我看著你", "我看着你"),
        ("他睡著了", "他睡着了"),
        ("她是著名的人", "她是著名的人"),
        ("妳好", "你好"),
        ("頭髮", "头发"),
    ],
)
def test_traditional_as_written_in_taiwan(text, right):
    assert simplified(text) == right


def test_every_reason_is_explained_in_the_report(tmp_path):
    """A set with every kind of bad record is built, and no reason is without its explanation."""
    good = [[f"第{i}句话你好", "嗯嗯好的"] for i in range(30)]
    jsonl = tmp_path / "x.jsonl"
    bad = ['{"x": 1}', '{"text": "今天"}', "[3]", "{", '{"rating": "dislike", "messages": []}']
    jsonl.write_text("\n".join([json.dumps(turns) for turns in good] + bad), encoding="utf-8")
    (tmp_path / "x.tsv").write_text("1\t你好呀\t在吗\t在的呀\n0\t你好呀\t在吗\t股票跌了\n" * 3, encoding="utf-8")
    paths = [str(jsonl), str(tmp_path / "x.tsv")]
    assert main(["--input", *paths, "--output", str(tmp_path / "set"), "--vocab-size", "600"]) == 0
    report = (tmp_path / "set" / "report" / "report.md").read_text(encoding="utf-8")
    for reason in ("object_without_turns", "text_without_a_reply", "not_a_list_of_strings", "not_json", "disliked"):
        assert re.search(rf"\| {reason} \| 1 \| \w", report)
    assert re.search(r"\| negative_example \| 3 \| \w", report)
    (tmp_path / "chat.txt").write_text(QQ, encoding="utf-8")
    bot = ["--bot", "小海", "--input", str(tmp_path / "chat.txt"), str(tmp_path / "chat.txt")]
    assert main([*bot, "--output", str(tmp_path / "of"), "--vocab-size", "600"]) == 0
    assert re.search(
        r"\| bot_does_not_reply \| \d \| \w", (tmp_path / "of/report/report.md").read_text(encoding="utf-8")
    )
