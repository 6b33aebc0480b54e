from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys

import pytest

from chatbot import Chatbot
from chatbot.cli import COMMANDS, chat, evaluate
from chatbot.errors import explain_faults
from chatbot.evaluation.grid import Grid
from tests.conftest import ROOT, SAMPLES


def test_messages_and_seed_give_what_python_gives(checkpoint, capsys):
    assert chat(["--checkpoint", str(checkpoint), "--message", "你好", "吃了吗", "--seed", "1"]) == 0
    first, second = capsys.readouterr().out.rstrip("\n").split("\n")
    bot = Chatbot.from_pretrained(checkpoint)
    assert first == bot.reply(["你好"], seed=1)
    assert second == bot.reply(["你好", first, "吃了吗"], seed=1)


def test_json(checkpoint, capsys):
    assert chat(["--checkpoint", str(checkpoint), "--message", "你好", "--seed", "1", "--json"]) == 0
    reply = json.loads(capsys.readouterr().out)
    assert reply["seed"] == 1
    assert reply["stop_reason"] in ("eos", "floor", "limit")


def test_the_terminal_gives_the_fixed_replies_too(checkpoint, tmp_path, capsys):
    base = ["--checkpoint", str(checkpoint), "--seed", "1"]
    assert chat([*base, "--json", "--message", "我不想活了", "嗯", "我没事了", "你好"]) == 0
    first, second, third, last = map(json.loads, capsys.readouterr().out.splitlines())
    assert [each["stop_reason"] for each in (first, second, third)] == ["safety"] * 3
    assert last["stop_reason"] != "safety"
    bot = Chatbot.from_pretrained(checkpoint)
    assert second["text"] == bot.reply(["我不想活了", first["text"], "嗯"])
    assert chat([*base, "--message", "我不想活了", "--safety", "off"]) == 0
    assert "12356" not in capsys.readouterr().out
    assert chat([*base, "--message", "你好", "--safety", str(tmp_path / "nowhere")]) == 1
    assert "safety files" in capsys.readouterr().err


@pytest.mark.parametrize("language", ["en", "zh"])
@pytest.mark.parametrize("name", ["a" * 5000, "folder/" * 700 + "end"], ids=["name", "path"])
@pytest.mark.parametrize("option", ["--checkpoint", "--top-k"])
def test_a_long_name_is_not_printed_whole(capsys, monkeypatch, language, name, option):
    monkeypatch.setenv("XIANLIAO_LANG", language)
    try:
        code = chat([option, name, "--message", "你好"])
    except SystemExit as stop:
        code = stop.code
    error = capsys.readouterr().err
    assert code
    assert name[-3:] in error
    assert len(error) < 800


def test_interactive_chat(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/retry\n\n/undo\n/undo\n/clear\n/nonsense\n好\n/quit\n"))
    assert chat(["--checkpoint", str(checkpoint), "--seed", "1"]) == 0
    captured = capsys.readouterr()
    assert captured.out.count("xianliao: ") == 3  # the message, its retry, and the one after /clear
    assert "message is empty" in captured.err
    assert "nothing to take back" in captured.err
    assert "/nonsense" in captured.err


def test_help_and_an_unknown_command_list_the_commands_and_undo_says_what_it_took_back(checkpoint, capsys, monkeypatch):
    converse(checkpoint, monkeypatch, ["/help", "/nonsense", "你好", "/undo", "/clear"])
    err = capsys.readouterr().err
    assert err.count(COMMANDS) == 3  # the first is the greeting
    assert "taken back: 你好\n" in err
    assert "The conversation starts again." in err
    assert all(name in COMMANDS for name in ("/another", "/retry", "/undo", "/clear", "/help", "/quit"))


def converse(checkpoint, monkeypatch, lines):
    monkeypatch.setattr("sys.stdin", io.StringIO("\n".join(lines)))
    assert chat(["--checkpoint", str(checkpoint), "--seed", "1", "--min-reply-tokens", "4"]) == 0


def interrupt_reply(monkeypatch, number, after):
    """Press Ctrl+C `after` steps into the reply of a number, counted from 1."""
    stream_replies, calls = Chatbot.stream_replies, []

    def interrupted(*args, **changes):
        calls.append(1)
        for step, reply in enumerate(stream_replies(*args, **changes)):
            if len(calls) == number and step == after:
                signal.raise_signal(signal.SIGINT)
            yield reply

    monkeypatch.setattr(Chatbot, "stream_replies", interrupted)


def test_another_way_to_say_it_in_the_terminal(checkpoint, capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("/another\n你好\n/another\n/another\n/quit\n"))
    assert chat(["--checkpoint", str(checkpoint), "--seed", "1", "--spread", "0.5"]) == 0
    captured = capsys.readouterr()
    bot = Chatbot.from_pretrained(checkpoint)
    texts = [bot.reply(["你好"], 1, variation=number, spread=0.5) for number in range(3)]
    replies = captured.out.split("xianliao: ")[1:]
    assert len(replies) == 3
    assert all(part.startswith(text) for part, text in zip(replies, texts, strict=True))
    assert "nothing to say in another way" in captured.err
    assert chat(["--checkpoint", str(checkpoint), "--spread", "3", "--message", "你好"]) == 1
    assert "spread must be a number from 0 to 2.0, got 3.0" in capsys.readouterr().err


def test_ctrl_c_stops_the_reply_and_keeps_the_text_so_far(checkpoint, capsys, monkeypatch):
    handler = signal.getsignal(signal.SIGINT)
    interrupt_reply(monkeypatch, 1, after=2)
    converse(checkpoint, monkeypatch, ["你好", "/undo", "/undo"])
    captured = capsys.readouterr()
    assert captured.out.count("[stopped]") == 1
    assert captured.err.count("nothing to take back") == 1  # the first /undo took the stopped exchange back
    assert signal.getsignal(signal.SIGINT) is handler


def test_a_stopped_reply_is_not_called_by_the_reason_of_the_one_before(checkpoint, capsys, monkeypatch):
    interrupt_reply(monkeypatch, 2, after=2)
    converse(checkpoint, monkeypatch, ["你好", "再来"])
    first, second = capsys.readouterr().out.splitlines()[:2]
    assert "[stopped]" not in first
    assert second.endswith("[stopped]")


def test_a_second_ctrl_c_ends_a_reply_that_does_not_come_and_retry_restores_the_former(checkpoint, capsys, monkeypatch):
    stream_replies, calls = Chatbot.stream_replies, []

    def stuck(*args, **changes):
        calls.append(1)
        if len(calls) == 2:
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)
        yield from stream_replies(*args, **changes)

    monkeypatch.setattr(Chatbot, "stream_replies", stuck)
    converse(checkpoint, monkeypatch, ["你好", "/retry", "/undo", "/undo"])
    captured = capsys.readouterr()
    assert captured.out.count("[stopped]") == 1
    assert captured.err.count("nothing to take back") == 1  # the exchange before /retry was still there


@pytest.mark.parametrize(
    "arguments",
    [
        ["--checkpoint", "nowhere"],
        ["--checkpoint", str(ROOT / "tests")],
        ["--device", "tpu"],
        ["--dtype", "int4"],
        ["--temperature", "0"],
        ["--temperature", "1e-40"],
        ["--seed", "-1"],
        ["--message", ""],
        ["--message", "长" * 100_000],
    ],
)
def test_faults_are_one_sentence_and_exit_1(checkpoint, arguments, capsys):
    base = ["--checkpoint", str(checkpoint), "--message", "你好"]
    assert chat(base + arguments) == 1
    captured = capsys.readouterr()
    assert captured.out == ""
    shown = captured.err.removeprefix(f"loading {checkpoint} …\n")
    assert shown.startswith("error: ")
    assert shown.count("\n") == 1


@pytest.fixture
def grid(tmp_path_factory):
    path = tmp_path_factory.mktemp("grid") / "grid.yaml"
    path.write_text("{lengths: [16], methods: {greedy: {base: plain, method: greedy}, default: {}}}")
    return path


def test_evaluate_writes_the_report(checkpoint, grid, tmp_path, capsys):
    call = [
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(tmp_path / "report"),
        "--contexts",
        "5",
        "--grid",
        str(grid),
    ]
    assert evaluate([*call, "--data", str(SAMPLES), "--max-dialogues", "20"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert 4 <= len(shown) <= 9
    assert shown[0].endswith("; contexts: 5; decoding methods: 2")
    assert shown[-1] == str(tmp_path / "report" / "report.html")
    assert any("Too few contexts were answered (5)" in line and "Raise --contexts" in line for line in shown)
    names = {"report.json", "report.md", "report.html", "timing.json", "replies"}
    assert {path.name for path in (tmp_path / "report").iterdir()} == names


def test_evaluate_compares_the_methods_that_are_asked_for(checkpoint, grid, tmp_path, capsys):
    call = ["--checkpoint", str(checkpoint), "--data", str(SAMPLES), "--max-dialogues", "20", "--contexts", "3"]
    call += ["--grid", str(grid), "--output", str(tmp_path)]
    assert evaluate([*call, "--methods", "greedy"]) == 0
    assert capsys.readouterr().out.splitlines()[0].endswith("; contexts: 3; decoding methods: 1")
    assert evaluate([*call, "--methods", "beam"]) == 1
    assert "Unknown method beam. The grid has: greedy; default." in capsys.readouterr().err


def test_the_default_grid_is_printed_to_be_edited(tmp_path, capsys):
    with pytest.raises(SystemExit) as exit_info:
        evaluate(["--print-grid"])
    assert exit_info.value.code == 0
    path = tmp_path / "mine.yaml"
    path.write_text(capsys.readouterr().out, encoding="utf-8")
    assert Grid.read(path) == Grid.read()


def test_evaluate_on_a_prepared_set_with_its_baseline(checkpoint, grid, prepared, tmp_path, capsys):
    call = [
        "--checkpoint",
        str(checkpoint),
        "--output",
        str(tmp_path),
        "--contexts",
        "3",
        "--grid",
        str(grid),
        "--baseline",
    ]
    assert evaluate([*call, "--data", str(prepared), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)["report"]
    assert report["baselines"]["dialogues"] > 100
    with pytest.raises(SystemExit) as exit_info:
        evaluate([*call, "--data", str(SAMPLES)])
    assert exit_info.value.code == 2


BAD_DATA = {
    "missing": None,
    "empty": "",
    "cut": '["a", "b"]\n["c',
    "object": '{"a": 1}\n',
    "numbers": "[1, 2]\n",
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_evaluate_explains_bad_data(checkpoint, tmp_path, name, capsys):
    path = tmp_path / "data.jsonl"
    if BAD_DATA[name] is not None:
        path.write_text(BAD_DATA[name])
    assert evaluate(["--checkpoint", str(checkpoint), "--data", str(path), "--output", str(tmp_path / "r")]) == 1
    error = capsys.readouterr().err
    assert "error: " in error
    assert "Traceback" not in error
    assert not (tmp_path / "r").exists()


def test_an_unwritable_output_is_one_sentence(checkpoint, tmp_path, capsys):
    (tmp_path / "file").write_text("precious")
    output = str(tmp_path / "file" / "report")
    assert evaluate(["--checkpoint", str(checkpoint), "--data", str(SAMPLES), "--output", output]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: Cannot open ")
    assert (tmp_path / "file").read_text() == "precious"


@pytest.mark.slow
def test_other_encodings_are_no_traceback(checkpoint):
    command = [sys.executable, "-m", "chatbot", "--checkpoint", str(checkpoint), "--seed", "1"]
    for encoding, options in (("ascii", ["--message", "你好"]), ("utf-8:strict", [])):
        environment = {**os.environ, "PYTHONIOENCODING": encoding}
        result = subprocess.run(
            [*command, *options], input=b"\xff\xfe\n", capture_output=True, cwd=ROOT, env=environment
        )
        assert result.returncode == 0
        assert b"Traceback" not in result.stderr
        assert result.stdout.decode("utf-8").strip()


@pytest.mark.slow
def test_the_command_runs_from_another_directory(checkpoint, tmp_path):
    command = [sys.executable, "-m", "chatbot", "--checkpoint", str(checkpoint), "--message", "你好", "--seed", "1"]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == Chatbot.from_pretrained(checkpoint).reply(["你好"], seed=1)


@pytest.mark.parametrize(
    ("name", "words"),
    [("chatbot.yaml_files", "Install xianliao again."), ("chatbots", 'pip install "xianliao[all]"')],
)
def test_a_missing_module_of_this_project_is_no_missing_package(name, words, capsys):
    @explain_faults
    def command(argv):
        raise ModuleNotFoundError(name=name)

    assert command([]) == 1
    error = capsys.readouterr().err
    assert words in error
    assert name in error
