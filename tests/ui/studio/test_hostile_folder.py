"""A folder from elsewhere, given to --studio: it names no file outside it, and no file in it ends the view."""

from __future__ import annotations

import json
import time

import pytest

from chatbot.errors import XianliaoError
from tests.ui.studio.test_studio import fake
from ui.page.chats import ChatError
from ui.studio.commands import MAX_PRESETS, find_presets
from ui.studio.options import StudioOptions
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
    started = time.process_time()
    assert ["evil.yaml", False] in opened(folder).state("en")["presets"]
    assert time.process_time() - started < 3


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


@pytest.mark.parametrize("files", FILES.values(), ids=FILES)
def test_a_damaged_result_does_not_end_the_view(folder, files):
    whole = {
        "set-1/manifest.json": "{}",
        "set-1/report/report.md": "",
        "bot-1/model.safetensors": "",
        "bot-1/training.json": '{"best_step": 3}',
        "project.json": json.dumps(
            {"set": 1, "bot": 1, "is_prepared": True, "outcome": "finished", "preset": "cpu_smoke"}
        ),
    }
    for name, text in (whole | files).items():
        path = folder / WORK / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(text.encode("utf-8", "surrogateescape"))
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
