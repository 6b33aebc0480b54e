"""A folder from elsewhere, given to --studio: it names no file outside it, and no file in it ends the view."""

from __future__ import annotations

import json
import os
import threading

import orjson
import pytest

from chatbot.errors import XianliaoError
from tests.processor_time import processor_seconds
from tests.ui.studio.test_studio import fake
from ui.page.chats import ChatError
from ui.studio.commands import MAX_PRESET_BYTES, MAX_PRESETS, find_presets
from ui.studio.options import StudioOptions
from ui.studio.results import MAX_POINTS
from ui.studio.studio import EMPTY, WORK, Studio


def opened(folder) -> Studio:
    return Studio(StudioOptions(folder), fake)


@pytest.fixture
def outside(tmp_path):
    folder = tmp_path / "outside"
    folder.mkdir()
    for name in ("secret.txt", "secret.yaml"):
        (folder / name).write_text("secret: 1\n")
    return folder


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "studio"
    folder.mkdir()
    (folder / "chat.txt").write_text("甲：你好\n乙：在吗\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("target", ["/etc/passwd", "../outside/secret.txt", "/dev/zero", "nothing", "linked.txt"])
def test_a_link_that_leaves_the_folder_cannot_be_chosen(folder, outside, target):
    (folder / "linked.txt").symlink_to(target)
    (folder / "inside.txt").symlink_to("chat.txt")
    studio = opened(folder)
    assert studio.state("en")["files"] == ["chat.txt", "inside.txt"]
    with pytest.raises(ChatError, match="no longer has this file"):
        studio.order({"do": "prepare", "chosen": ["linked.txt"]})
    studio.close()


def test_a_preset_that_is_a_link_out_of_the_folder_is_not_shown(folder, outside):
    (folder / "linked.yaml").symlink_to(outside / "secret.yaml")
    assert "linked.yaml" not in {preset.name for preset in find_presets(folder)}


@pytest.mark.parametrize(
    "text",
    [
        "stages: [{data: [/etc]}]",
        "data: [../outside]",
        "data: [linked:0.5:replies]",
        "init: ~",
        "model: {deep: [{output: /tmp/x}]}",
        "data: ['~/data:2']",
    ],
)
def test_a_preset_that_names_a_path_outside_the_folder_is_not_shown(folder, outside, text):
    (folder / "linked").symlink_to(outside)
    (folder / "out.yaml").write_text(text)
    (folder / "in.yaml").write_text("{data: [set-1, ./set-2:0.5], init: default, stages: [{name: a}]}")
    names = {preset.name for preset in find_presets(folder)}
    assert "in.yaml" in names
    assert ("out.yaml" in names) is (text == "init: ~")  # null in YAML


def test_inputs_outside_the_folder_are_not_shown(folder):
    write_project(folder, {"project.json": json.dumps({"set": 1, "inputs": ["/etc/passwd"], "names": ["passwd"]})})
    studio = opened(folder)
    state = studio.state("en")
    assert "passwd" not in json.dumps(state)
    studio.close()


@pytest.mark.parametrize("name", ["bot-1", "bot-1/resume", "set-1"])
def test_a_run_that_leaves_the_folder_by_a_link_is_not_continued(folder, outside, name):
    (outside / "resume" / ".step-00000001").mkdir(parents=True)
    record = {"set": 1, "bot": 1, "is_prepared": True, "outcome": "stopped", "preset": "cpu_smoke"}
    write_project(folder, {"project.json": json.dumps(record)})
    path = folder / WORK / name
    if path.exists():
        path.rename(folder / WORK / "moved")
    path.symlink_to(outside / "resume" if name.endswith("resume") else outside)
    studio = opened(folder)
    with pytest.raises(ChatError, match="leads out"):
        studio.order({"do": "resume"})
    assert (outside / "resume" / ".step-00000001").is_dir()
    studio.close()


YAML = {
    "deep": "[" * 100_000,
    "deep blocks": "".join("  " * depth + "a:\n" for depth in range(2_000)),
    "aliases": "a: &a [x, x, x]\n"
    + "".join(f"{b}: &{b} [*{a}, *{a}, *{a}]\n" for a, b in zip("abcdefghijklmn", "bcdefghijklmno", strict=True)),
    "object": "!!python/object/apply:os.system ['false']",
    "large": "a: b\n" * 2_000_000,
    "date": "2001-99-99",
    "binary": "\0\x01",
    "surrogate": '"\\ud800"',
}


@pytest.mark.parametrize("text", YAML.values(), ids=YAML)
def test_a_hostile_preset_is_shown_by_name_and_read_in_bounded_time(folder, text):
    (folder / "evil.yaml").write_text(text)

    def show() -> None:
        assert ["evil.yaml", False] in opened(folder).state("en")["presets"]

    assert processor_seconds(show, 3) < 3


def test_a_large_preset_is_shown_and_not_parsed(folder, monkeypatch):
    text = "max_steps: 3 #".ljust(MAX_PRESET_BYTES, "-")
    (folder / "most.yaml").write_text(text)
    (folder / "more.yaml").write_text(text + "-")
    write_project(folder, {"project.json": json.dumps({"set": 1, "is_prepared": True})})
    read: list[str] = []
    monkeypatch.setattr("ui.studio.commands.read_yaml", read.append)
    studio = opened(folder)
    assert {"most.yaml", "more.yaml"} <= {name for name, _ in studio.state("en")["presets"]}
    assert text in read
    assert max(map(len, read)) == MAX_PRESET_BYTES
    for order in ("estimate", "train"):
        with pytest.raises(
            ChatError, match=r"The preset more\.yaml is larger than 4 KB\. Shorten it, or choose another one\."
        ):
            studio.order({"do": order, "preset": "more.yaml"})
    studio.close()


def test_many_presets_of_the_largest_size_are_parsed_once(folder):
    for number in range(10):
        text = f"# {number}\nx:\n" + "".join(f'  - k{line}: [1, 2, "a"]\n' for line in range(2_000))
        (folder / f"{number}.yaml").write_text(text[:MAX_PRESET_BYTES].rpartition("\n")[0])
    studio = opened(folder)
    first = processor_seconds(lambda: studio.state("en"), 30)
    assert processor_seconds(lambda: studio.state("en"), 1) < first / 10
    studio.close()


def test_the_number_of_presets_is_bounded(folder):
    for number in range(300):
        (folder / f"{number}.yaml").write_text("max_steps: 3\n")
    assert len(find_presets(folder)) <= MAX_PRESETS + 10


@pytest.mark.parametrize("kind", ["link", "dangling", "file"])
def test_the_folder_for_results_is_in_the_folder(folder, outside, kind):
    if kind == "file":
        (folder / WORK).write_text("")
    else:
        (folder / WORK).symlink_to(outside if kind == "link" else outside / "nothing")
    with pytest.raises(XianliaoError, match=r"is not a folder of .*Remove it"):
        opened(folder)
    assert {path.name for path in outside.iterdir()} == {"secret.txt", "secret.yaml"}


RECORDS = [
    {"inputs": [3]},
    {"inputs": [["/etc/passwd"]], "names": [{}]},
    {"estimate": [None, 1]},
    {"set": -1},
    {"set": 10**300, "bot": 10**20},
    {"set": True},
]


@pytest.mark.parametrize("record", RECORDS)
def test_values_of_the_wrong_type_in_a_record_are_left_out(folder, record):
    (folder / WORK).mkdir()
    (folder / WORK / "project.json").write_text(json.dumps(record | {"error": "an error"}))
    studio = opened(folder)
    assert studio._record == EMPTY | {"error": "an error"}
    assert studio.state("zh")["error"]
    studio.close()


FILES = {
    "manifest list": {"set-1/manifest.json": "[]"},
    "manifest empty": {"set-1/manifest.json": "{}"},
    "manifest types": {"set-1/manifest.json": '{"splits": 3, "dropped": [1]}'},
    "report": {"set-1/report/report.md": "\udcff| a |\n"},
    "metrics": {
        "bot-1/metrics.jsonl": "[" * 100_000
        + '\n{"step": 1, "loss": "x"}\n{"step": 1e999}\n{"step": true, "loss": NaN}\n'
    },
    "samples": {
        "bot-1/samples.jsonl": '{"step": 3}\n{"step": 3, "prompt": [], "reply": 1}\n{"step": 3, "prompt": 5, "reply": 1}\n'
    },
    "training": {"bot-1/training.json": '{"best_step": [3], "step": {}}'},
}


WHOLE = {
    "set-1/manifest.json": "{}",
    "set-1/report/report.md": "",
    "bot-1/model.safetensors": "",
    "bot-1/training.json": '{"best_step": 3}',
    "bot-1/metrics.jsonl": '{"step": 1, "loss": 2.0}\n',
    "bot-1/samples.jsonl": '{"step": 3, "prompt": ["a"], "reply": "b"}\n',
    "project.json": json.dumps({"set": 1, "bot": 1, "is_prepared": True, "outcome": "finished", "preset": "cpu_smoke"}),
}
"""Files of a project that has trained a bot."""


def write_project(folder, files) -> None:
    for name, text in (WHOLE | files).items():
        path = folder / WORK / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))


def state_of(folder, seconds: float = 5) -> dict:
    """Return what the view shows; a view that hangs fails the test instead of ending it."""
    states: list[dict] = []
    reader = threading.Thread(target=lambda: states.append(opened(folder).state("zh")), daemon=True)
    reader.start()
    reader.join(seconds)
    assert states, "the view does not answer"
    return states[0]


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("kind", ["pipe", "folder", "zero", "outside"])
@pytest.mark.parametrize("name", WHOLE)
def test_a_file_that_is_not_a_regular_file_of_the_folder_is_not_read(folder, outside, name, kind):
    manifest = {"dialogues": {"read": 1}, "splits": {"train": {"dialogues": 1}, "valid": {"dialogues": 0}}}
    write_project(folder, {"set-1/manifest.json": json.dumps(manifest)})
    path = folder / WORK / name
    if kind == "outside":
        path.rename(outside / path.name)
    else:
        path.unlink()
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/zero" if kind == "zero" else outside / path.name)
    state = state_of(folder)
    read = {
        "project.json": state["outcome"],
        **{part: state["report"] for part in WHOLE if part.startswith("set-1")},
        "bot-1/metrics.jsonl": state["curves"] and state["curves"]["loss"],
        "bot-1/samples.jsonl": state["result"] and state["result"]["sample"],
        "bot-1/training.json": state["result"],
    }
    assert not read.get(name)
    if not name.endswith(("project.json", "model.safetensors")):
        assert {part for part, value in read.items() if not value} - {"bot-1/samples.jsonl"} <= {
            part for part in WHOLE if part.split("/")[0] == name.split("/")[0]
        }


LOGS = {
    "one step": '{"step": 0, "loss": 1.0}\n' * 40_000,
    "multiples": "".join(f'{{"step": {step << 30}, "loss": 1}}\n' for step in range(30_000)),
    "backwards": "".join(f'{{"step": {step}, "loss": 1}}\n' for step in range(40_000, 0, -1)),
    "long lines": ("[" * 1_000_000 + "\n") * 40,
    "long": '{"step": 1, "loss": 1.0}\n' * 2_000_000,
}


@pytest.mark.parametrize("text", LOGS.values(), ids=LOGS)
def test_a_hostile_log_is_read_in_bounded_time(folder, text):
    write_project(folder, {"bot-1/metrics.jsonl": text, "bot-1/samples.jsonl": text})

    def draw() -> None:
        studio = opened(folder)
        assert len(studio.state("zh")["curves"]["loss"]) <= MAX_POINTS + 1
        studio.close()

    assert processor_seconds(draw, 3) < 3


def test_the_end_of_a_long_log_is_read(folder):
    lines = [json.dumps({"step": step, "loss": 1.0, "note": "x" * 100}) + "\n" for step in range(1, 20_001)]
    write_project(folder, {"bot-1/metrics.jsonl": "".join(lines)})
    studio = opened(folder)
    steps = [step for step, _ in studio.state("zh")["curves"]["loss"]]
    assert 1 < steps[0] < steps[-1] == 20_000
    with (folder / WORK / "bot-1" / "metrics.jsonl").open("a") as file:
        file.write('{"step": 20001, "loss": 1.0}\n')
    assert studio.state("zh")["curves"]["loss"][-1] == [20_001, 1.0]
    studio.close()


HUGE = "9" * 4_000


@pytest.mark.parametrize(
    "files",
    [
        {"bot-1/metrics.jsonl": f'{{"step": {HUGE}, "loss": 1}}\n{{"step": 4, "loss": {HUGE}}}\n'},
        {"bot-1/metrics.jsonl": f'{{"step": 4, "loss": 1, "tokens_per_second": {HUGE}}}\n'},
        {"bot-1/training.json": f'{{"best": {HUGE}, "before": [{HUGE}], "best_step": {HUGE}, "step": {{}}}}'},
        {"bot-1/samples.jsonl": '{"step": 3, "prompt": ["\\ud800"], "reply": "\\udfff"}\n'},
        {"set-1/manifest.json": f'{{"dialogues": {{"read": {HUGE}}}, "splits": {{}}}}'},
    ],
)
def test_what_the_view_shows_can_be_sent(folder, files):
    write_project(folder, files)
    studio = opened(folder)
    orjson.dumps(studio.state("zh"))  # as Gradio does: whole numbers have 64 bits, texts are UTF-8
    studio.close()


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_a_damaged_result_does_not_end_the_view(folder, files):
    write_project(folder, files)
    studio = opened(folder)
    state = studio.state("zh")
    assert state["outcome"] == "finished"
    json.dumps(state)
    studio.close()


@pytest.mark.parametrize(
    "person", ["--output=/tmp/x", "-h", "$(touch x)", "`id`", "a\nb", "'; ls", "\u202e名", "名" * 5_000]
)
def test_a_name_is_one_argument_of_the_command(folder, person):
    studio = opened(folder)
    studio.order({"do": "prepare", "texts": [{"name": person, "text": "你好\n在吗"}], "person": person})
    command = studio._prepare_command()
    assert command[-1].startswith("--bot=")
    assert [part for part in command if person[:20] in part] in ([command[-1]], [])
    studio.close()


def test_a_text_of_4_mib_is_refused_and_writes_nothing(folder):
    studio = opened(folder)
    with pytest.raises(ChatError, match="too much"):
        studio.order({"do": "prepare", "texts": [{"name": "a", "text": "长" * (4 << 20)}]})
    assert [path.name for path in (folder / WORK).iterdir() if path.is_dir()] == []
    studio.close()
