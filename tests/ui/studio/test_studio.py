"""The training view's project, with a stand-in for the commands."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import pytest

from chatbot.errors import XianliaoError
from chatbot.language.translation import read_catalogue
from chatbot.text.prepared_set import load_split
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.preview import preview
from data_prep.report import _REASONS
from tests.conftest import ROOT
from ui.page.chats import ChatError
from ui.studio.commands import arguments_of, environment, find_presets
from ui.studio.jobs import CLOSE_SECONDS, Job, Progress, read_progress
from ui.studio.options import StudioOptions
from ui.studio.results import MAX_POINTS, Curves, Series, read_preview, result_of
from ui.studio.studio import EMPTY, WORK, Studio
from ui.studio.text import REASONS, STUDIO_TEXT

FAKE = Path(__file__).with_name("fake_command.py")
TEXT = {"do": "prepare", "texts": [{"name": "", "text": "你好\n在吗"}]}


def fake(command: list[str]) -> list[str]:
    return [sys.executable, "-S", "-E", str(FAKE), *command]


@pytest.fixture
def folder(tmp_path) -> Path:
    for name in ("quick", "endless", "bad"):
        (tmp_path / f"{name}.yaml").write_text("max_steps: 3\n")
    (tmp_path / "chat.txt").write_text("甲：你好\n乙：在吗\n", encoding="utf-8")
    (tmp_path / "notes.md").write_text("secret")
    return tmp_path


@pytest.fixture
def studio(folder):
    studio = Studio(StudioOptions(folder), fake)
    yield studio
    studio.close()


def wait(studio: Studio, condition=lambda state: not state["task"], language: str = "en") -> dict:
    deadline = time.monotonic() + 30
    while not condition(state := studio.state(language)):
        assert time.monotonic() < deadline, state
        time.sleep(0.005)
    return state


def prepared(studio: Studio) -> dict:
    studio.order(TEXT)
    return wait(studio)


def running(studio: Studio) -> dict:
    prepared(studio)
    studio.order({"do": "train", "preset": "endless.yaml"})
    return wait(studio, lambda state: state["progress"])


def test_from_dialogues_to_a_result(studio, folder):
    state = prepared(studio)
    assert state["report"]["counts"] == {
        **{"read": 10, "kept_whole": 9, "split": 0, "dropped": 1},
        **{"train": 7, "valid": 2},
    }
    assert state["report"]["reasons"] == [
        ["dropped", "one_turn", 1, "a single turn, alone or between removed turns, which has no answer"],
        ["changed_turns", "repeats", 3, "shorter"],
    ]
    assert state["report"]["examples"] == [["repeats", "哈哈哈哈哈", "哈哈"]]
    assert state["report"]["samples"] == [["你好", "在吗"]]
    assert (
        studio.state("zh")["report"]["reasons"][0][3]
        == REASONS["a single turn, alone or between removed turns, which has no answer"]
    )
    studio.order({"do": "estimate", "preset": "quick.yaml"})
    assert wait(studio)["estimate"] == [
        ["model", "18.65M parameters, 18.65M of them trained"],
        ["memory", "about 1.0 GB"],
    ]
    assert studio.state("zh")["estimate"][1] == ["内存", "约 1.0 GB"]
    studio.order({"do": "train", "preset": "quick.yaml"})
    state = wait(studio)
    assert state["outcome"] == "finished"
    assert state["curves"]["loss"] == [[1, 4.0], [2, 3.0], [3, 1.5]]
    assert state["curves"]["valid"] == [[3, 3.5]]
    sample = ["在吗", "在呢", "不在"]
    assert state["result"] == {"before": 4.0, "best": 3.5, "best_step": 3, "valid": 2, "sample": sample}
    assert studio.result_folder() == folder / WORK / "bot-1"
    work = folder / WORK
    assert shlex.split(state["commands"]["prepare"]) == [
        *("xianliao-prepare", "--input", str(work / "data-1" / "1.txt"), "--tokenizer", "default"),
        *("--output", str(work / "set-1"), "--valid-share", "0.1", "--preview", "5"),
    ]
    assert shlex.split(state["commands"]["train"]) == [
        *("xianliao-train", "--data", str(work / "set-1"), "--init", "default"),
        *("--config", str(folder / "quick.yaml"), "--output", str(work / "bot-1")),
    ]
    studio.order({"do": "train", "preset": "quick.yaml"})  # another run gets a folder of its own
    assert wait(studio)["outcome"] == "finished"
    assert studio.result_folder().name == "bot-2"


def test_a_stopped_run_is_saved_and_continued(studio):
    running(studio)
    for _ in range(3):  # only one signal is sent: a second one would end a run without saving
        studio.order({"do": "stop"})
    state = wait(studio)
    assert (state["outcome"], state["error"], state["result"]) == ("stopped", "", None)
    with pytest.raises(ChatError, match="No model can be chatted"):
        studio.result_folder()
    studio.order({"do": "resume"})
    state = wait(studio)
    assert state["outcome"] == "finished"
    assert "resumed True" in "".join(studio._job.messages)


def test_a_command_runs_with_low_priority_and_says_its_progress(studio):
    state = running(studio)
    assert (state["task"], state["progress"]) == ("train", [2, 3, "00:06"])
    assert 0 <= state["seconds"] < 600
    assert state["messages"] == [f"niceness {max(10, os.nice(0))}, resumed False"]


@pytest.mark.parametrize("order", ["prepare", "estimate", "train", "resume", "again"])
def test_a_second_start_is_refused(studio, order):
    running(studio)
    with pytest.raises(ChatError, match="Another task is running"):
        studio.order({**TEXT, "do": order, "preset": "quick.yaml"})
    assert studio.state("en")["task"] == "train"


def test_a_failure_is_said_in_words(studio):
    studio.order({"do": "prepare", "texts": [{"text": "broken"}]})
    assert wait(studio)["error"] == "/a b.txt does not exist. Check the path."
    assert studio.state("zh")["error"] == "/a b.txt 不存在。请检查路径。"
    assert studio.state("en")["report"] is None
    prepared(studio)
    studio.order({"do": "train", "preset": "bad.yaml"})
    state = wait(studio)
    assert (state["outcome"], state["error"]) == ("failed", "Loss nan")


def test_a_command_that_cannot_start_is_a_failure(folder):
    studio = Studio(StudioOptions(folder), lambda command: [str(folder / "no-such-program")])
    studio.order(TEXT)
    assert "No such file" in wait(studio)["error"]
    studio.close()


def test_a_command_that_no_process_can_have_is_a_failure(tmp_path):
    job = Job([sys.executable, "a\0b"], tmp_path)
    job.start()
    job._thread.join(30)
    assert job.code == 1
    assert "null byte" in job.messages[-1]


def test_a_command_ends_with_the_server_and_the_project_is_found_again(folder):
    studio = Studio(StudioOptions(folder), fake)
    running(studio)
    with pytest.raises(XianliaoError, match="Another server is already using this folder for its training view"):
        Studio(StudioOptions(folder), fake)
    process = studio._job._process
    studio.close()
    assert process.poll() == 130
    again = Studio(StudioOptions(folder), fake)
    assert again.state("en")["outcome"] == "stopped"
    assert again.state("en")["report"]["counts"]["read"] == 10
    again.order({"do": "resume"})
    assert wait(again)["outcome"] == "finished"
    again.close()


def test_a_server_that_was_killed_leaves_a_run_that_can_be_continued(folder):
    studio = Studio(StudioOptions(folder), fake)
    running(studio)
    record = (folder / WORK / "project.json").read_bytes()
    studio.close()
    (folder / WORK / "project.json").write_bytes(record)  # as it was while the run went on
    again = Studio(StudioOptions(folder), fake)
    assert again.state("en")["outcome"] == "stopped"
    again.close()


@pytest.mark.skipif(os.name != "posix", reason="signals of POSIX")
def test_a_command_ends_when_its_server_was_killed(tmp_path):
    """Its next line has no reader any more."""
    child = "import os, sys, time; open('pid', 'w').write(str(os.getpid()))\n"
    child += "while True: print('step', file=sys.stderr, flush=True); time.sleep(0.01)"
    server = "import pathlib, sys, time; from ui.studio.jobs import Job\n"
    server += f"Job([sys.executable, '-S', '-c', {child!r}], pathlib.Path(sys.argv[1])).start(); time.sleep(60)"
    process = subprocess.Popen([sys.executable, "-c", server, str(tmp_path)], cwd=ROOT)
    pid, deadline = tmp_path / "pid", time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.wait()
    while is_alive(int(pid.read_text())):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and was not waited for does not."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_a_command_that_does_not_end_is_killed(tmp_path):
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
    code += "print('ready', file=sys.stderr, flush=True); time.sleep(60)"
    job = Job([sys.executable, "-S", "-c", code], tmp_path)
    job.start()
    deadline = time.monotonic() + 30
    while not job.messages and time.monotonic() < deadline:
        time.sleep(0.005)
    job.close(0.05)
    assert job.code == -9
    assert CLOSE_SECONDS < 8  # the server ends within seconds


@pytest.mark.parametrize("name", ["../chat.txt", "/etc/passwd", "notes.md", "", ".", "quick.yaml", "CHAT.TXT", None, 3])
def test_a_client_names_no_file(studio, name):
    with pytest.raises(ChatError, match="no longer has this file"):
        studio.order({"do": "prepare", "chosen": [name]})
    assert studio._record == EMPTY


@pytest.mark.parametrize(
    "name", ["../quick.yaml", "{folder}/quick.yaml", "cpu_finetune.yaml", "", None, ["quick.yaml"]]
)
def test_a_client_names_no_preset_by_its_path(studio, folder, name):
    prepared(studio)
    name = name.format(folder=folder) if isinstance(name, str) else name
    for order in ("estimate", "train"):
        with pytest.raises(ChatError, match="preset does not exist"):
            studio.order({"do": order, "preset": name})


def test_a_file_of_the_folder_is_chosen_by_its_name(studio, folder):
    assert studio.state("en")["files"] == ["chat.txt"]
    studio.order({"do": "prepare", "chosen": ["chat.txt"], "person": " -阿\0\ud800 哲\n "})
    words = shlex.split(wait(studio)["commands"]["prepare"])
    assert words[2] == str(folder / "chat.txt")
    assert words[-1] == "--bot=-阿 哲"
    studio.order({"do": "train", "preset": "quick.yaml"})  # and only this person's turns are learnt
    assert shlex.split(wait(studio)["commands"]["train"])[2] == f"{folder / WORK / 'set-1'}:replies"


def test_the_name_of_a_sent_text_chooses_no_place(studio, folder):
    names = ["../../evil.sh", "/tmp/x.json", "a.JSONL", "b", None, {"a": 1}]
    studio.order({"do": "prepare", "texts": [{"name": name, "text": f"你好{name}\n在"} for name in names]})
    state = wait(studio)
    written = sorted(path.name for path in (folder / WORK / "data-1").iterdir())
    assert written == ["1.txt", "2.json", "3.jsonl", "4.txt", "5.txt", "6.txt"]
    assert state["inputs"][:2] == ["../../evil.sh", "/tmp/x.json"]  # shown as text only
    assert {path.name for path in folder.iterdir()} == {
        WORK,
        "chat.txt",
        "notes.md",
        "quick.yaml",
        "endless.yaml",
        "bad.yaml",
    }


@pytest.mark.parametrize(
    ("order", "message"),
    [
        ({"do": "prepare"}, "No dialogues yet"),
        ({"do": "prepare", "texts": "x", "chosen": {"a": 1}, "person": 3}, "No dialogues yet"),
        ({"do": "prepare", "texts": [{"text": 3}, 4, {"text": "  "}]}, "No dialogues yet"),
        ({"do": "prepare", "texts": [{"text": "长" * 2_500_001}]}, "too much"),
        ({"do": "prepare", "texts": [{"text": "x"}] * 51}, "too much"),
        ({"do": "estimate", "preset": "quick.yaml"}, "Clean the dialogues first"),
        ({"do": "train"}, "Clean the dialogues first"),
        ({"do": "resume"}, "No run can be continued"),
    ],
)
def test_orders_that_cannot_be_followed_are_refused(studio, order, message):
    with pytest.raises(ChatError, match=message):
        studio.order(order)
    assert studio._record == EMPTY


@pytest.mark.parametrize("order", [None, 3, "prepare", [], {}, {"do": ["stop"]}, {"do": "close"}, {"do": "stop"}])
def test_what_is_no_order_changes_nothing(studio, order):
    before = studio.state("en")
    studio.order(order)
    assert studio.state("en") == before


def test_other_users_of_the_machine_cannot_read_the_work(studio, folder):
    assert (folder / WORK).stat().st_mode & 0o077 == 0


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_job_ends_even_if_its_end_cannot_be_recorded(tmp_path):
    def fail(job, code):
        raise OSError("no space")

    job = Job([sys.executable, "-S", "-c", ""], tmp_path, on_end=fail)
    job.start()
    job._thread.join(30)
    assert job.code == 0


def test_beginning_again_keeps_what_was_made(studio, folder):
    prepared(studio)
    studio.order({"do": "again"})
    assert studio.state("en")["report"] is None
    prepared(studio)
    assert {path.name for path in (folder / WORK).iterdir() if path.is_dir()} == {"data-1", "set-1", "data-2", "set-2"}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"set": "x", "inputs": 3, "outcome": null, "more": 1}'])
def test_a_damaged_record_is_a_new_project(folder, content):
    (folder / WORK).mkdir()
    (folder / WORK / "project.json").write_text(content)
    studio = Studio(StudioOptions(folder), fake)
    assert studio._record == EMPTY
    studio.close()


def test_presets_are_those_of_the_package_and_of_the_folder(folder):
    (folder / "new.yml").write_text("model:\n  hidden_size: 8\n")
    (folder / "odd.yaml").write_text(": [")
    presets = [(preset.name, preset.is_new) for preset in find_presets(folder)]
    package = [("cpu_finetune", False), ("cpu_smoke", True), ("small", True), ("base", True)]
    fine_tuning = [(f"{name}.yaml", False) for name in ("bad", "endless", "odd", "quick")]
    folder_presets = sorted([*fine_tuning, ("new.yml", True)])
    assert presets == package + folder_presets
    assert all(f"studio_note_{name}" in STUDIO_TEXT["en"] for name, _ in package)


def test_the_process_is_the_command_that_is_shown():
    arguments = arguments_of(["xianliao-train", "--data", "a b"])
    assert arguments == [sys.executable, "-P", "-m", "training", "--data", "a b"]
    assert environment()["HF_HUB_OFFLINE"] == "1"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("training:  33%|███▎      | 1/3 [00:06<00:12,  6.18s/step, loss=4.8]", Progress("training", 1, 3, "00:12")),
        ("stage 1: warm:   5%|▌  | 10/200 [1:00:06<19:00:12,  6.18s/step]", Progress("stage 1: warm", 10, 200, "19:00:12")),
        ("training:   0%|          | 0/3 [00:00<?, ?step/s]", None),
        ("cleaning:  35%|███▌ | 1.20M/3.40M [00:05<00:09, 240kB/s]", Progress("cleaning", 35, 100, "00:09")),
        ("cleaning: 100%|█████| 343/343 [00:00<00:00, 16.8kB/s]", Progress("cleaning", 100, 100, "00:00")),
        ("cleaning:   0%|          | 0.00/343 [00:00<?, ?B/s]", Progress("cleaning", 0, 100, "")),
        ("training: 4.136 nats/unit before the training", None),
        ("", None),
    ],
)  # fmt: skip
def test_lines_of_a_progress_bar(line, expected):
    assert read_progress(line) == expected


def test_the_sample_of_a_result_is_the_reply_that_changed_most(tmp_path):
    before = {"你好": "你好呀", "在吗": "在", "晚安": "晚安"}
    after = {**before, "在吗": "不在", "早": "早"}
    (tmp_path / "model.safetensors").touch()
    (tmp_path / "training.json").write_text('{"best_step": 3}')
    rows = [(0, *pair) for pair in before.items()] + [(3, *pair) for pair in after.items()]
    lines = [json.dumps({"step": step, "prompt": [prompt], "reply": reply}) for step, prompt, reply in rows]
    (tmp_path / "samples.jsonl").write_text("".join(f"{line}\n" for line in lines))
    assert result_of(tmp_path)["sample"] == ["在吗", "不在", "在"]


def test_a_log_is_read_as_it_grows_and_anew_when_a_run_is_continued(tmp_path):
    curves = Curves(tmp_path)
    assert curves.read()["loss"] == []
    lines = [f'{{"step": {step}, "loss": {step}.5}}\n' for step in (1, 2, 3)]
    for text, steps in (
        (lines[0] + lines[1][:9], [1]),
        (lines[0] + lines[1] + "no\n[]\n", [1, 2]),
        (lines[0], [1]),
        (lines[0] + lines[2], [1, 3]),
    ):
        (tmp_path / "metrics.jsonl").write_text(text)
        assert curves.read()["loss"] == [[step, step + 0.5] for step in steps]


@pytest.mark.parametrize("count", [0, 1, 3, MAX_POINTS - 1, MAX_POINTS, 10 * MAX_POINTS + 7])
def test_a_curve_keeps_few_points_at_even_distances_and_the_last_one(count):
    series = Series()
    for step in range(1, count + 1):
        series.add(step, -step)
    steps = [step for step, _ in series.points]
    assert len(steps) == count if count < MAX_POINTS else MAX_POINTS / 2 <= len(steps) <= MAX_POINTS
    assert steps[-1:] == [count][: count > 0]
    assert len({after - before for before, after in pairwise(steps[:-1])}) <= 1
    assert all(value == -step for step, value in series.points)


def test_a_preview_is_read(prepared):
    text = "noise\ndialogue 1: 2 turns, 9 tokens\n  person: 今天|\n  bot: 好⏎的\ndialogue 2: x\n"
    assert read_preview(text) == [["今天|", "好⏎的"], []]
    tokenizer = DialogueTokenizer.load(prepared)
    turns = [[tokenizer.decode(ids) for ids in row] for row in load_split(prepared, "train")[:3]["turns"]]
    assert read_preview(preview(prepared, 3, colour=False)) == turns


def test_every_reason_of_a_cleaning_report_has_its_chinese():
    assert {text for text in _REASONS.values() if text not in REASONS and text not in read_catalogue()} == set()
    assert set(REASONS) <= set(_REASONS.values())


def test_both_languages_have_the_same_texts():
    assert STUDIO_TEXT["zh"].keys() == STUDIO_TEXT["en"].keys()
