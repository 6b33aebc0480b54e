"""Inputs that were once read wrongly, each with what was said in it, or with the words that refuse it."""

from __future__ import annotations

from pathlib import Path

import pytest

from chatbot.errors import FileError
from data_prep.cli import main
from data_prep.reading.formats import form_of, splits_of
from tests.records import read_records

CASES = Path(__file__).with_name("cases")
READ = {
    "01-qq-preamble/qq.txt": ("chatlog", [["明天见面吗", "明天下午可以", "好的，老地方见"]]),
    "02-lone-surrogate/in.jsonl": ("jsonl", [["今天去哪里玩", "去公园走走吧"], ["你好�呀", "好的"]]),
    "04-csv/qa.csv": ("table", [["你叫什么名字", "我叫小白"], ["今天天气怎么样", "晴天，很热"]]),
    "04-csv/qa_gbk.csv": ("table", [["你叫什么名字", "我叫小白"], ["今天天气怎么样", "晴天，很热"]]),
    "04-csv/qingyun.csv": (
        "table",
        [["南京在哪里", "在这里了"], ["咋死？", "红烧还是爆炒dnf？"], ["爱你", "爱你就像老鼠爱大米"]],
    ),
    "04-csv/wxmsg.csv": ("table", [["周末去爬山吗", "好啊,几点出发", "早上七点怎么样", "可以的，我带水"]]),
    "05-wechatmsg-txt/in.txt": (
        "chatlog",
        [["周末去爬山吗", "好啊，几点出发", "早上七点怎么样", "可以的，我带水"], ["这个攻略不错"]],
    ),
    "05-wechatmsg-txt/placeholders.txt": (
        "chatlog",
        [
            ["看这个", "哈哈好看，给你的饭钱", "谢谢啦", "嗯嗯好的", "我马上到", "好的等你", "来了来了"],
            ["看到了，写得不错，晚安好梦"],
        ],
    ),
    "05-wechatmsg-txt/system.txt": ("chatlog", [["在吗", "在的呀", "晚上去吗", "去的"]]),
    "08-lccc-train-valid/toy_data.json": ("object", [["你 好 呀", "你 也 好"], ["去 哪 里 玩", "去 公 园 吧"]]),
    "08-lccc-train-valid/toy_data_min.json": (
        "object",
        [
            ["你 好 呀", "你 也 好"],
            ["今 天 吃 什 么", "吃 面 吧"],
            ["去 哪 里 玩", "去 公 园 吧", "好 的"],
            ["睡 了 吗", "还 没 有 呢"],
        ],
    ),
    "09-other-exports/ab.txt": (
        "labelled",
        [["你好，吃饭了吗", "吃了，你呢", "我也吃了"], ["明天去哪", "去图书馆吧"], ["在吗", "在的，有什么事"]],
    ),
    "09-other-exports/line.txt": ("labelled", [["周末去爬山吗", "好啊，几点", "早上七点怎么样", "可以的 我带水"]]),
    "09-other-exports/markdown.txt": ("labelled", [["在吗，睡了吗", "还没有呢，刚忙完工作"]]),
    "09-other-exports/qce.txt": ("labelled", [["周末去爬山吗", "好啊，几点"]]),
    "09-other-exports/wa_ios.txt": ("chatlog", [["周末去爬山吗", "好啊，几点"], ["早上七点怎么样"]]),
    "09-other-exports/wxpaste2.txt": (
        "labelled",
        [["周末去爬山吗", "好啊，几点出发", "早上七点怎么样", "可以的，我带水"]],
    ),
    "09-other-exports/xhj.conv": (
        "labelled",
        [["呵呵", "是王若猫的。"], ["不是", "那是什么？"], ["怎么了", "我很难过，安慰我~"]],
    ),
    "11-think/in.jsonl": ("jsonl", [["那什么，有空吗", "有空的，您说。"], ["今天累了", "早点休息吧"]]),
    "23-json-variants/belle.jsonl": ("jsonl", [["你好", "你好，有什么事", "讲个故事", "从前有座山"]]),
    "23-json-variants/chatglm.jsonl": (
        "jsonl",
        [["你好", "你好呀"], ["你好", "你好呀", "长城多高", "很高"], ["你好", "你好呀", "长城多高", "很高"]],
    ),
    "23-json-variants/discord.json": ("object", [["晚上打游戏吗", "打呀，八点开始"]]),
    "23-json-variants/firefly.jsonl": ("jsonl", [["你好吗", "我很好"]]),
    "23-json-variants/gpt_part.jsonl": ("jsonl", [["你好", "你好呀"]]),
    "23-json-variants/moss.jsonl": ("jsonl", [["你好", "你好呀"]]),
    "23-json-variants/msgs.jsonl": ("messages", [["周末去爬山吗", "好啊"]]),
    "23-json-variants/telegram.json": (
        "object",
        [["新年快乐呀", "同乐同乐，看这个 https://example.com", "看到了，很有意思"]],
    ),
    "23-json-variants/variants.jsonl": (
        "jsonl",
        [
            ["你好，介绍一下杭州", "杭州是个好地方"],
            ["你好呀朋友", "你好你好"],
            ["讲个笑话", "从前有座山", "然后呢"],
            ["在干嘛", "在看书呢"],
            ["图里是什么", "是一只猫"],
            ["几点了", "十点了"],
            ["你好", "你也好", "你叫什么", "我叫小明"],
            ["你叫什么", "我叫小明"],
            ["写一句话", "春天来了"],
            "text_without_a_reply",
            ["早上好", "早呀"],
            ["早上好吗", "早呀早呀"],
            ["你是谁呀", "我是小白"],
            ["头疼怎么办", "多休息"],
            ["天好热", "是啊"],
            ["去吗", "去"],
            ["你好我是小红", "你好小红"],
            ["晚上好", "好呀好呀"],
            ["你好", "你好呀", "吃了吗"],
            ["你好", "你好呀", "吃了没", "吃了呀"],
            ["打球去吗", "好的走吧"],
        ],
    ),
}
"""For each file its form and its dialogues, or the reason why a record holds none."""
REFUSED = {"09-other-exports/movie.srt": "holds subtitles, which do not name the speakers"}


@pytest.mark.parametrize("name", READ)
def test_an_input_gives_what_was_said(name):
    form, right = READ[name]
    assert form_of(CASES / name) == form
    assert [record.turns or record.reason for record in read_records(CASES / name)] == right


@pytest.mark.parametrize("name", REFUSED)
def test_an_input_is_refused_in_words(name):
    with pytest.raises(FileError, match=REFUSED[name]):
        list(read_records(CASES / name))


def test_every_input_has_its_case():
    files = {path.relative_to(CASES).as_posix() for path in CASES.rglob("*") if path.is_file()}
    assert files == set(READ) | set(REFUSED)
    assert len(files) == 29


def test_the_splits_of_cdial_gpt_are_kept():
    for path in (CASES / "08-lccc-train-valid").iterdir():
        assert splits_of(path) == ("train", "valid")


def test_half_an_emoji_does_not_end_a_build(tmp_path):
    path = str(CASES / "02-lone-surrogate" / "in.jsonl")
    build = ["--input", path, "--output", str(tmp_path / "set"), "--vocab-size", "600", "--valid-share", "0"]
    assert main(build) == 0
    assert main(build) == 0  # and again
