"""Models of the hub by name, from a server on this machine that speaks the hub's API."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from chatbot import Chatbot
from chatbot.chat.session import ChatSession
from chatbot.checkpoint import hub as hub_names
from chatbot.checkpoint.folder import load_model, save
from chatbot.checkpoint.location import resolve
from chatbot.cli import chat, evaluate
from chatbot.errors import CheckpointError
from chatbot.text.tokenizer import DialogueTokenizer
from tests.chat_models import write_chat_model
from tests.conftest import ROOT, SAMPLES
from tests.hub_server import Hub, serving

NAME = "someone/tiny-qwen"
REMOTE_CODE = ("modeling_evil.py", "pytorch_model.bin", "original/model.safetensors", "merges.txt", "README.md")


@pytest.fixture(scope="module")
def source(dialogues, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hub") / "source"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], "qwen3")
    (folder / "original").mkdir()
    for name in REMOTE_CODE:
        (folder / name).write_bytes(b"not read")
    return folder


@pytest.fixture
def hub(source, tmp_path, monkeypatch):
    """A hub with one model and an empty cache, with the network allowed."""
    from huggingface_hub import constants

    with serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", served.url + "/{repo_id}/resolve/{revision}/{filename}"
        )
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.chdir(tmp_path)
        served.push(NAME, source)
        hub_names.fetch.cache_clear()
        yield served
        hub_names.fetch.cache_clear()


def next_start() -> None:
    """Forget what this process has found, as a new process has."""
    hub_names.fetch.cache_clear()


def test_a_name_is_downloaded_once_and_only_files_that_are_read(hub: Hub, source, capsys):
    bot = Chatbot.from_pretrained(NAME)
    assert bot.name == NAME
    assert bot.reply(["你好"], seed=0) == Chatbot.from_pretrained(source).reply(["你好"], seed=0)
    expected = {"config.json", "generation_config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"}
    assert set(hub.downloads) == expected
    assert len(hub.downloads) == len(expected)
    lines = capsys.readouterr().err.splitlines()
    notices = [line for line in lines if line.startswith(NAME)]
    assert len(notices) == 1
    assert hub.branches[NAME]["main"] in notices[0]


def test_later_starts_use_the_commit_of_the_first(hub: Hub, source, tmp_path, capsys):
    first = hub.branches[NAME]["main"]
    folder = resolve(NAME)
    newer = shutil.copytree(source, tmp_path / "newer")
    (newer / "generation_config.json").write_text('{"temperature": 0.5}')
    second = hub.push(NAME, newer)
    asked = len(hub.downloads)
    next_start()
    assert resolve(NAME) == folder
    assert folder.name == first
    assert len(hub.downloads) == asked
    capsys.readouterr()
    next_start()
    assert resolve(f"{NAME}@main").name == second  # asks for the newest, which is the commit of later starts
    assert second in capsys.readouterr().err
    next_start()
    assert resolve(NAME).name == second
    assert Chatbot.from_pretrained(NAME, revision=first).folder == folder


def test_later_starts_need_no_network(hub: Hub, monkeypatch, capsys):
    from huggingface_hub import constants

    folder = resolve(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    next_start()
    assert resolve(NAME) == folder
    next_start()
    assert resolve(f"{NAME}@{folder.name}") == folder
    assert "using commit" in capsys.readouterr().err


def test_an_interrupted_download_is_not_taken_for_the_model(hub: Hub):
    folder = resolve(NAME)
    (folder / "model.safetensors").unlink()
    asked = len(hub.downloads)
    next_start()
    assert (resolve(NAME) / "model.safetensors").is_file()
    assert len(hub.downloads) >= asked


def test_weights_in_several_files(hub: Hub, source, tmp_path):
    from safetensors.torch import load_file, save_file

    sharded = shutil.copytree(source, tmp_path / "sharded")
    tensors = load_file(sharded / "model.safetensors")
    (sharded / "model.safetensors").unlink()
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    half = {name: names[index % 2] for index, name in enumerate(tensors)}
    for file in names:
        save_file({name: tensors[name] for name in half if half[name] == file}, sharded / file, {"format": "pt"})
    (sharded / "model.safetensors.index.json").write_text(json.dumps({"weight_map": half}))
    hub.push("someone/sharded", sharded)
    folder = resolve("someone/sharded")
    assert Chatbot.from_pretrained("someone/sharded").reply(["你好"], seed=1)
    (folder / names[1]).unlink()
    assert hub_names.find_cached("someone/sharded", "main") is None


def fault(name: str) -> str:
    with pytest.raises(CheckpointError) as error:
        resolve(name)
    message = str(error.value)
    assert "\n" not in message
    return message


def test_faults_are_one_sentence(hub: Hub, source, tmp_path, monkeypatch):
    from huggingface_hub import constants

    hub.push("someone/gated", source)
    hub.gated.add("someone/gated")
    assert "is gated. Accept its terms on" in fault("someone/gated")
    assert f"{hub.url} has no model someone/missing" in fault("someone/missing")
    assert "has no revision 'v9'" in fault(f"{NAME}@v9")
    hub.sizes["model.safetensors"] = 10**18
    assert "it needs 1000000000.0 GB" in fault(NAME)
    hub.sizes.clear()
    assert "model.safetensors" not in hub.downloads
    for file, words in (("model.gguf", "only GGUF files"), ("pytorch_model.bin", "only pickled files")):
        other = shutil.copytree(source, tmp_path / file, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
        (other / file).write_bytes(b"x")
        hub.push("someone/other", other)
        assert words in fault("someone/other@main")
    other = shutil.copytree(source, tmp_path / "mamba")
    (other / "config.json").write_text('{"model_type": "mamba"}')
    hub.push("someone/mamba", other)
    assert "is of type 'mamba'. Supported are xianliao, gpt2, llama" in fault("someone/mamba")
    assert "model.safetensors" not in hub.downloads
    for constant in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
        monkeypatch.setattr(constants, constant, getattr(constants, constant).replace(hub.url, "http://127.0.0.1:9"))
    assert "cannot be downloaded: http://127.0.0.1:9 cannot be reached" in fault(NAME)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert "cannot be downloaded: HF_HUB_OFFLINE is set" in fault(NAME)


def test_a_folder_comes_before_the_hub(hub: Hub, source, tmp_path):
    shutil.copytree(source, tmp_path / NAME)
    assert resolve(NAME) == Path(NAME)
    assert hub.downloads == []
    assert "write someone/other@main" in fault(
        "someone/other"
    )  # the folder someone/ exists, so this may be a misspelt path
    assert "Cannot find the checkpoint folder" in fault(str(tmp_path / "someone" / "gone"))
    assert not hub_names.is_hub_name(Path("other/model"))
    with pytest.raises(CheckpointError, match="--revision 'v1' needs a model of the hub"):
        Chatbot.from_pretrained(NAME, revision="v1")


def test_a_missing_path_of_this_machine_is_no_model_of_the_hub(hub: Hub, source, tmp_path):
    for name in ("runs/nosuch", "./mine/nosuch"):
        assert (
            fault(name)
            == f"Cannot find the checkpoint folder {Path(name)}. Check the path, or omit it for the bundled bot."
        )
    (tmp_path / "runs").mkdir()
    assert "hub" not in fault("runs/nosuch")
    shutil.copytree(source, tmp_path / "runs" / "mine")
    assert fault("runs/nosuch").endswith("runs/nosuch. Checkpoints in runs: mine.")
    assert fault("runs/mien").endswith("Did you mean runs/mine?")
    assert fault("runs/deeper/mien").endswith("Did you mean runs/mine?")
    assert hub.downloads == []


def test_an_adapter_names_its_model_and_downloads_nothing(hub: Hub, tmp_path, monkeypatch):
    from huggingface_hub import constants

    pytest.importorskip("peft", reason="LoRA needs peft")
    from chatbot.checkpoint import lora

    base = resolve(NAME)
    model = load_model(base)
    lora.attach(model, rank=2, alpha=4)
    save(tmp_path / "adapter", model, DialogueTokenizer.load(base), {}, {"step": 1})
    stored = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert (stored["base_model_name_or_path"], stored["revision"]) == (NAME, base.name)
    assert load_model(tmp_path / "adapter").source == base
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    asked = len(hub.downloads)
    with pytest.raises(CheckpointError, match=f"needs {NAME}@{base.name}, which is not here"):
        load_model(tmp_path / "adapter")
    assert len(hub.downloads) == asked


def test_commands_take_names(hub: Hub, tmp_path, capsys):
    commit = hub.branches[NAME]["main"]
    assert chat(["--checkpoint", NAME, "--revision", commit, "--message", "你好", "--seed", "1"]) == 0
    output = capsys.readouterr().out.strip()
    assert output == ChatSession(Chatbot.from_pretrained(NAME)).reply("你好", 1)
    assert chat(["--checkpoint", NAME, "--revision", "v9", "--message", "你好"]) == 1
    assert "error: someone/tiny-qwen has no revision 'v9'" in capsys.readouterr().err
    assert chat(["--revision", "v9", "--message", "你好"]) == 1
    assert "--revision 'v9' needs a model of the hub" in capsys.readouterr().err


@pytest.mark.slow
def test_evaluate_prepare_and_train_take_names(hub: Hub, tmp_path, capsys):
    from data_prep.cli import main as prepare
    from training.cli import main as train

    data = tmp_path / "set"
    assert prepare(["--input", str(SAMPLES), "--tokenizer", NAME, "--output", str(data)]) == 0
    run = ["--data", str(data), "--init", NAME, "--output", str(tmp_path / "run"), "--max-steps", "1"]
    assert train(run) == 0
    assert Chatbot.from_pretrained(tmp_path / "run").reply(["你好"], seed=0) is not None
    base = json.loads((tmp_path / "run" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert base == NAME
    args = ["--data", str(SAMPLES / "everyday.jsonl"), "--contexts", "2", "--max-dialogues", "4"]
    assert evaluate(["--checkpoint", NAME, *args, "--output", str(tmp_path / "report")]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert report["checkpoints"][0]["name"] == NAME


@pytest.mark.slow
def test_a_server_under_a_name(hub: Hub, tmp_path):
    """The whole command in a new process, with the endpoint from the environment."""
    import httpx

    variables = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-m", "ui", "--checkpoint", NAME, "--port", "0", "--data-dir", str(tmp_path)]
    environment = {**os.environ, **variables, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as process:
        try:
            url = process.stdout.readline().split()[0]
            assert httpx.get(f"{url}/v1/models").json()["data"][0]["id"] == NAME
            message = {"model": NAME, "messages": [{"role": "user", "content": "你好"}], "seed": 0}
            answer = httpx.post(f"{url}/v1/chat/completions", json=message, timeout=60)
            assert answer.status_code == 200
            assert answer.json()["choices"][0]["finish_reason"] in ("stop", "length")
            assert httpx.get(url).status_code == 200
        finally:
            process.terminate()
            process.wait(30)
