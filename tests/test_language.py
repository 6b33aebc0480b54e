"""The terminal speaks Chinese where the locale is Chinese: every help text, every message, every error."""

from __future__ import annotations

import argparse
import ast
import errno
import inspect
import json
import locale
import os
import re

import pytest

from chatbot.language.parser import Parser, columns, wrap
from chatbot.language.translation import CATALOGUE, VARIABLES, is_chinese, to_chinese, translate
from data_prep.pipeline import all_rules
from tests.messages import PARSERS, ROOMS, ROOT, Module, help_texts, messages
from tests.processor_time import processor_seconds

SECTIONS = json.loads(CATALOGUE.read_text(encoding="utf-8"))
ENTRIES = {english: chinese for section in SECTIONS.values() for english, chinese in section.items()}
HAN = re.compile("[一-鿿]")


@pytest.fixture
def chinese(monkeypatch):
    monkeypatch.setenv("XIANLIAO_LANG", "zh")


@pytest.mark.parametrize(("command", "texts"), help_texts().items())
def test_every_help_text_has_a_translation(command, texts):
    assert len(texts) > 5
    assert {text for text in texts if text not in ENTRIES} == set()


def test_every_message_has_a_translation():
    texts = messages()
    assert len(texts) > 270
    composed = {"Decoding: {0}.", "http://{0}:{1}  {2}"}
    assert {text: where for text, where in texts.items() if text not in ENTRIES}.keys() == composed


def test_every_rule_has_a_translation():
    assert {rule.summary for rule in all_rules()} == set(SECTIONS["rules"])


def test_every_entry_is_a_text_of_the_code():
    constants = {
        node.value
        for room in ROOMS
        for path in (ROOT / room).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    known = constants | set(messages()) | set().union(*help_texts().values())
    unused = {text for name in ("terminal", "help", "errors") for text in SECTIONS[name]} - known
    parts = {part for text in constants for part in (text, f"{text}{{0}}", text.removesuffix(": "))}
    assert unused - parts == set()
    assert set(SECTIONS["system"]) <= {os.strerror(number) for number in errno.errorcode}


def test_the_entries_of_argparse_are_its_texts():
    source = inspect.getsource(argparse) + "Show this help message and exit. Show the help for StageSettings and exit."
    templates = re.sub(r"%(\(\w+\))?[rs]", "{}", source)
    assert [text for text in SECTIONS["argparse"] if re.sub(r"\{\d\}", "{}", text) not in templates] == []


@pytest.mark.parametrize("english", ENTRIES)
def test_entries_are_chinese_with_the_same_values(english):
    chinese = ENTRIES[english]
    assert HAN.search(re.sub("cuda 或|、", "中", chinese))
    assert set(re.findall(r"\{\d\}|%\(\w+\)s", chinese)) == set(re.findall(r"\{\d\}|%\(\w+\)s", english))
    assert set(re.findall(r"--[a-z-]+", english)) <= set(re.findall(r"--[a-z-]+", chinese))
    assert not re.search(r"[一-鿿][,;:?!]|[,;?!][一-鿿]", chinese.replace(", ? !", ""))


@pytest.mark.parametrize(
    ("english", "expected"),
    [
        ("/a b.txt does not exist. Check the path.", "/a b.txt 不存在。请检查路径。"),
        ("Line 3 of x.jsonl is neither UTF-8 nor GB18030. Convert the file to UTF-8.",
         "x.jsonl 的第 3 行既不是 UTF-8 也不是 GB18030。请把文件转成 UTF-8。"),
        ("--output is missing; --seed must be at least 0", "缺少 --output；--seed 至少是 0"),
        ("unknown flag --ab; did you mean --ac?; unknown flag --x; --config needs a file.",
         "没有选项 --ab，是不是想写 --ac？；没有选项 --x；--config 要带一个文件。"),
        ("Decoding: temperature must be between 0.01 and 100, got 0 (for 0, use method 'greedy');"
         " top_p must be above 0, got 0.",
         "解码：temperature 必须在 0.01 和 100 之间，收到的是 0（要用 0，请把 method 设为 'greedy'）；"
         "top_p 必须大于 0，收到的是 0。"),
        ("stage 2: --clip-norm must be above 0, got 0.", "阶段 2：--clip-norm 必须大于 0，收到的是 0。"),
        ("Cannot open a; b: No such file or directory.", "无法打开 a; b：没有这个文件或文件夹。"),
        ("argument --top-k: invalid int value: 'x'", "选项 --top-k：值 'x' 不是 int 类型"),
        ("A text that is not in the catalogue; nor is this: no.", "A text that is not in the catalogue; nor is this: no."),
    ],
)  # fmt: skip
def test_finished_messages_are_translated_with_their_values(english, expected):
    assert to_chinese(english) == expected


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, True),
        ({"LANG": "zh_TW"}, True),
        ({"LANG": "en_US.UTF-8"}, False),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "C"}, False),
        ({"LANG": "C.UTF-8", "LC_MESSAGES": "zh_CN"}, True),
        ({"LANG": "zh_CN.UTF-8", "XIANLIAO_LANG": "en"}, False),
        ({"LANG": "en_US", "LC_ALL": "C", "XIANLIAO_LANG": "zh"}, True),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, True),
    ],
)
def test_the_first_variable_that_is_set_chooses_the_language(monkeypatch, variables, expected):
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert is_chinese() is expected
    assert translate("stopped") == ("已停止" if expected else "stopped")


@pytest.mark.parametrize(("name", "expected"), [("Chinese (Simplified)_China", True), ("zh_CN", True), (None, False)])
def test_without_variables_the_system_chooses(monkeypatch, name, expected):
    for variable in VARIABLES:
        monkeypatch.delenv(variable, raising=False)
    monkeypatch.setattr(locale, "getlocale", lambda: (name, "cp936"))
    assert is_chinese() is expected


@pytest.mark.parametrize("command", PARSERS)
def test_help_is_chinese_throughout(command, chinese):
    shown = PARSERS[command]().format_help()
    assert shown.startswith("用法：")
    assert re.findall(r"(?:(?<=\s)[a-z]{2,},? ){3}", shown.replace("sample, greedy", "")) == []
    usage, _, rest = shown.partition("\n\n")
    assert command in usage
    assert max(map(columns, rest.splitlines())) <= 80


def test_commands_report_errors_in_chinese(chinese, capsys, tmp_path):
    from chatbot.cli import chat, evaluate
    from data_prep.cli import main as prepare
    from training.cli import main as train
    from ui.cli import main as serve

    missing = str(tmp_path / "none")
    assert chat(["--checkpoint", missing, "--message", "你好"]) == 1
    assert capsys.readouterr().err == f"错误：找不到模型文件夹 {missing}。请检查路径；不写路径就用自带的机器人。\n"
    assert prepare(["--input", missing, "--output", str(tmp_path / "set")]) == 1
    assert capsys.readouterr().err == f"错误：{missing} 不存在。请检查路径。\n"
    assert train(["--data", "a"]) == 2
    assert capsys.readouterr().err == "xianliao-train: 错误：缺少 --output：请给出这次训练的文件夹。\n"
    for command, argv, expected in (
        (evaluate, ["--data", "a", "--output", "b", "--contexts", "0"], "--contexts 至少是 1"),
        (serve, ["--port", "-1"], "--port 必须在 0 和 65535 之间"),
        (serve, ["--auth", "x"], "--auth：给的值不是 user:password 的形式，或者文件不存在。"),
    ):
        with pytest.raises(SystemExit, match="2"):
            command(argv)
        shown = capsys.readouterr().err.removeprefix("正在加载 default …\n")
        assert shown.startswith("用法：")
        assert shown.endswith(f": 错误：{expected}\n")


def test_english_help_is_as_written(monkeypatch):
    parser = Parser(prog="p", description="Chat in the terminal.")
    assert parser.format_help().startswith("usage: p [-h]\n\nChat in the terminal.\n")
    monkeypatch.setenv("XIANLIAO_LANG", "zh")
    assert "在终端里聊天。" in parser.format_help()


def test_a_message_of_many_parts_takes_little_time():
    """Each of these parts matches an entry alone and together with the parts after it, but the last part matches none."""
    text = "; ".join([f"{number} is not valid YAML (x)" for number in range(14)] + ["unknown"])

    def translate() -> None:
        assert to_chinese(text) == text

    assert processor_seconds(translate, 2) < 2


def test_lines_break_by_columns_and_not_before_punctuation():
    text = "文件或文件夹，可以是 .gz、.bz2（默认：没有）。"
    for width in range(8, 40):
        lines = wrap(text, width)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
        assert not any(line[0] in "，。、：）" or line[-1] == "（" for line in lines)
        assert all(columns(line) <= width or len(line.split()) == 1 for line in lines)
    assert wrap("一二三四五", 6) == ["一二三", "四五"]


def test_the_search_finds_messages_of_all_kinds(tmp_path):
    path = tmp_path / "module.py"
    path.write_text(
        'ADVICE = "Give another one."\n'
        "def check(a, near):\n"
        "    faults = [f'{a} is wrong'] if a else []\n"
        "    faults.append(f'unknown name {a}' + (f', did you mean {near}?' if near else ''))\n"
        "    if near:\n"
        "        raise FileError(f'{a!r} is bad. {ADVICE}')\n"
        "    raise AttributeError('not for users')\n",
        encoding="utf-8",
    )
    assert {text for _, text in Module(path, "module.py").messages()} == {
        "{0} is wrong",
        "unknown name {0}",
        "unknown name {0}, did you mean {1}?",
        "{0} is bad. Give another one.",
    }
