"""Labels that name the speakers, thoughts of reasoning models, LINE for PC, and files that give nothing."""

from __future__ import annotations

import json

import pytest

from chatbot.errors import FileError
from data_prep.cli import main
from data_prep.reading.labelled.prefixes import alternating_signs, unlabelled
from data_prep.reading.thoughts import without_thoughts
from tests.records import read_records

TEA = ["要喝茶吗", "来一杯", "红茶还是绿茶", "绿茶吧"]


def turns_of(path, text):
    path.write_text(text, encoding="utf-8")
    return [record.turns or record.reason for record in read_records(path)]


LABELS = {
    "甲乙": ("甲：", "乙："),
    "question, answer": ("Q. ", "A. "),
    "question, answer with a mark": ("问、", "答、"),
    "prompts": ("用户>", "助手>"),
    "prompts in Latin": ("user> ", "bot> "),
    "full-width": ("用户＞", "助手＞"),
    "nicks": ("<xiaolan> ", "<@laodeng> "),
    "nicks with a colon": ("xiao_lan: ", "laodeng: "),
    "brackets": ("【小海】", "【阿木】"),
    "square brackets": ("[小海] ", "[阿木] "),
}


@pytest.mark.parametrize("name", LABELS)
@pytest.mark.parametrize("count", [2, 4])
def test_labels_in_a_text_name_the_speakers(tmp_path, name, count):
    lines = [LABELS[name][index % 2] + turn for index, turn in enumerate(TEA[:count])]
    assert turns_of(tmp_path / "x.txt", "\n".join(lines) + "\n") == [TEA[:count]]
    assert turns_of(tmp_path / "x.txt", "\n".join([*lines, "", *lines]) + "\n") == [TEA[:count]] * 2


@pytest.mark.parametrize("name", LABELS)
def test_labels_in_lists_of_strings_are_not_speech(tmp_path, name):
    turns = [LABELS[name][index % 2] + turn for index, turn in enumerate(TEA)]
    assert turns_of(tmp_path / "x.jsonl", json.dumps(turns, ensure_ascii=False) + "\n") == [TEA]
    assert turns_of(tmp_path / "x.tsv", "\t".join(turns) + "\n") == [TEA]


def test_only_labels_are_removed():
    assert unlabelled(["用户：在吗", "助手：在的"]) == ["在吗", "在的"]
    for turns in (
        ["注意：明天开会", "回复：好的"],  # two turns, and neither word is a role
        ["用户：在吗", "在的"],
        ["小海：在吗", "小海：在吗"],
        ["他说：走吧", "真的吗", "他说：真的", "好"],
        ["10：30 见", "好的：10：30"],
    ):
        assert unlabelled(list(turns)) == turns


SHAPES = {
    "signs": (
        "\n".join(f"{sign}{turn}" for sign, turn in zip(["客~", "店~"] * 2, TEA, strict=True)),
        "“客~” and “店~”",
    ),
    "YAML of lists": ("categories:\n- 日常\nconversations:\n- - 要喝茶吗\n  - 来一杯\n", "is YAML"),
    "YAML of nested lists": ("- - 要喝茶吗\n  - 来一杯\n- - 红茶还是绿茶\n  - 绿茶吧\n", "is YAML"),
    "YAML of messages": ("- role: user\n  content: 要喝茶吗\n- role: assistant\n  content: 来一杯\n", "is YAML"),
    "a list": ("- 要喝茶吗\n- 来一杯\n\n- 红茶还是绿茶\n- 绿茶吧\n", "mark before each line \\(4 of 4\\)"),
    "a thought without a beginning": ("要喝茶吗\n他问我喝不喝\n</think>\n来一杯\n", "Line 3 of .* ends a thought"),
    "a thought without an end": ("要喝茶吗\n<think>他问我\n来一杯\n", "Line 2 of .* does not end"),
    "a web archive": ("From: <Save by X>\nSubject: Chat\nMIME-Version: 1.0\n\n<html>\n", "is a web page"),
}


@pytest.mark.parametrize("name", SHAPES)
def test_a_shape_that_would_be_learnt_as_speech_is_refused_by_its_name(tmp_path, name):
    text, words = SHAPES[name]
    with pytest.raises(FileError, match=words):
        turns_of(tmp_path / "x.txt", text + "\n")


def test_ordinary_lines_are_not_taken_for_labels(tmp_path):
    for text in (
        "好的~\n嗯~\n好吧\n走\n好的~\n",
        "你好。\n我很好。\n谢谢。\n再见。\n",
        "今天去哪\n- 去公园\n不去\n好吧\n",
        "我 也 是\n我 知 道\n你 好\n你 看\n",
    ):
        assert turns_of(tmp_path / "x.txt", text) == [text.split("\n")[:-1]]
    assert alternating_signs(["A：好", "B：好"]) is None  # too few lines to tell


THOUGHTS = {
    "<think>他问我</think>来一杯": "来一杯",
    "<think>\n\n</think>\n\n来一杯": "来一杯",
    "他问我\n</think>\n\n来一杯": "来一杯",
    "<think>他问我，我该怎么说": "",
    "<think>一</think><think>二</think>来一杯": "来一杯",
    "<|begin_of_thought|>他问我<|end_of_thought|><|begin_of_solution|>来一杯<|end_of_solution|>": "来一杯",
    "<|end_of_thought|>来一杯": "来一杯",
    "<THINKING>他问我</THINKING>来一杯": "来一杯",
    "◁think▷他问我◁/think▷来一杯": "来一杯",
    "1 < 2 <b>来一杯</b>": "1 < 2 <b>来一杯</b>",
}


@pytest.mark.parametrize("text", THOUGHTS)
def test_thoughts_are_not_speech(tmp_path, text):
    right = THOUGHTS[text]
    assert without_thoughts(text) == right
    shapes = [
        ["要喝茶吗", text],
        {"messages": [{"role": "user", "content": "要喝茶吗"}, {"role": "assistant", "content": text}]},
        {"instruction": "要喝茶吗", "output": text},
        {"q": "要喝茶吗", "a": text},
    ]
    lines = "".join(json.dumps(shape, ensure_ascii=False) + "\n" for shape in shapes)
    assert [[turn.strip() for turn in turns] for turns in turns_of(tmp_path / "x.jsonl", lines)] == [
        ["要喝茶吗", right]
    ] * 4
    log = f"2024-03-01 20:02:00 小海\n要喝茶吗\n\n2024-03-01 20:03:00 阿木\n{text}\n\n"
    expected = ["要喝茶吗", right] if right else ["要喝茶吗"]
    assert turns_of(tmp_path / "x.txt", log)[0] == expected
    if "\n" not in text:
        table = f"question,answer\n要喝茶吗,{text}\n"
        assert turns_of(tmp_path / "x.csv", table) == [["要喝茶吗", right]]
        assert turns_of(tmp_path / "x.tsv", f"要喝茶吗\t{text}\n") == [["要喝茶吗", right]]


def test_a_reply_that_is_one_thought_does_not_join_its_neighbours():
    """The messages before and after it are two turns, with an empty one between them at which cleaning cuts."""
    from data_prep.reading.json_shapes import to_turns

    messages = [("user", "要喝茶吗"), ("assistant", "<think>想"), ("user", "不理我"), ("assistant", "来一杯")]
    value = {"messages": [{"role": role, "content": text} for role, text in messages]}
    assert to_turns(value) == ["要喝茶吗", "", "不理我", "来一杯"]


@pytest.mark.parametrize(
    "text",
    [
        "要喝茶吗\n<think>\n他问我\n\n喝不喝\n</think>\n\n来一杯\n",
        "User: 要喝茶吗\nAssistant: <think>\n他问我\n\n喝不喝\n</think>\n\n来一杯\n",
        "User: 要喝茶吗\nAssistant: <think>他问我</think>来一杯\n",
        "小海:\n要喝茶吗\n\n阿木:\n<think>\n他问我\n\n</think>\n来一杯\n\n",
    ],
)
def test_a_thought_of_several_lines_in_a_text(tmp_path, text):
    assert turns_of(tmp_path / "x.txt", text) == [["要喝茶吗", "来一杯"]]


PC = {
    "contact in the heading": "[LINE] Chat history with Mei Lin\nSaved on: 2023/07/05 21:00\n\n2023.07.04 Tuesday\n{}",
    "Chinese": "[LINE] 與Mei Lin的聊天\n儲存日期: 2023/07/05 21:00\n\n2023.07.04 星期二\n{}",
    "no heading": "2023.07.04 星期二\n{}",
    "a group": "[LINE] Chat in 茶友\nSaved on: 2023/07/05 21:00\n\n2023/07/04 Tue\n{}",
}


@pytest.mark.parametrize("name", PC)
def test_names_with_spaces_in_exports_of_line_for_pc(tmp_path, name):
    speakers = ["Mei Lin", "Chen de Yuan"] * 2
    rows = [f"20:0{minute} {who} {turn}" for minute, (who, turn) in enumerate(zip(speakers, TEA, strict=True))]
    rows[2:2] = ["20:01 Chen de Yuan Stickers", "20:01 Mei Lin unsent a message."]
    text = PC[name].format("\n".join(rows) + "\n小杯的\n20:08 Mei Lin Photos\n")
    assert turns_of(tmp_path / "x.txt", text) == [[*TEA[:3], TEA[3] + " 小杯的"]]


def test_a_nick_that_is_addressed_is_not_speech(tmp_path):
    log = "[20:00] <xiaolan> 有人吗\n[20:01] <mimi> xiaolan: 在的\n[20:02] <xiaolan> 时间: 现在\n"
    assert turns_of(tmp_path / "x.txt", log) == [["有人吗", "在的", "时间: 现在"]]


def good(path):
    path.write_text("".join(f'["第{i}句话你好", "嗯嗯好的"]\n' for i in range(40)), encoding="utf-8")
    return str(path)


def test_a_file_that_gives_nothing_beside_good_ones_is_named(tmp_path, capsys):
    """On the terminal, in the manifest and in the report, with the form it was read as, or the reasons."""
    (tmp_path / "silent.txt").write_text("2024-03-01 20:02:00 系统消息(10000)\n欢迎\n\n" * 3, encoding="utf-8")
    (tmp_path / "dropped.jsonl").write_text('{"x": 1}\n{"x": 2}\n', encoding="utf-8")
    inputs = [good(tmp_path / "good.jsonl"), str(tmp_path / "silent.txt"), str(tmp_path / "dropped.jsonl")]
    assert main(["--input", *inputs, "--output", str(tmp_path / "set"), "--vocab-size", "600", "--json"]) == 0
    captured = capsys.readouterr()
    report = (tmp_path / "set/report/report.md").read_text(encoding="utf-8")
    for words in (
        "No dialogue was found in silent.txt, which was read as chatlog.",
        "dropped.jsonl gave no dialogue: all 2 that were read were dropped (object_without_turns 2).",
    ):
        assert words in captured.err
        assert words in report
        assert any(words in warning for warning in json.loads(captured.out)["warnings"])


def test_files_that_were_not_reached_are_not_doubted(tmp_path, capsys):
    inputs = [good(tmp_path / "a.jsonl"), good(tmp_path / "b.jsonl")]
    flags = ["--max-dialogues", "20", "--output", str(tmp_path / "set"), "--vocab-size", "600"]
    assert main(["--input", *inputs, *flags]) == 0
    assert "No dialogue was found" not in capsys.readouterr().err


def test_a_single_file_that_gives_nothing_is_refused_with_its_form(tmp_path, capsys):
    (tmp_path / "silent.txt").write_text("2024-03-01 20:02:00 系统消息(10000)\n欢迎\n\n" * 3, encoding="utf-8")
    assert main(["--input", str(tmp_path / "silent.txt"), "--output", str(tmp_path / "set")]) == 1
    assert "silent.txt, which was read as chatlog. Compare it with the forms" in capsys.readouterr().err


def test_a_doubtful_file_among_many_is_named(tmp_path, capsys):
    """One file in ten whose turns hold times is a small share of the whole set."""
    odd = [[f"8:{i}0 有人", "嗯嗯好的"] for i in range(3)]
    (tmp_path / "odd.jsonl").write_text("".join(json.dumps(turns) + "\n" for turns in odd), encoding="utf-8")
    inputs = [good(tmp_path / "good.jsonl"), str(tmp_path / "odd.jsonl")]
    assert main(["--input", *inputs, "--output", str(tmp_path / "set"), "--vocab-size", "600"]) == 0
    assert "odd.jsonl: 3 of 6 turns hold a time of day" in capsys.readouterr().err
