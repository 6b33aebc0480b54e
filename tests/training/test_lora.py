"""xianliao-train --init CHAT_MODEL: only an adapter is trained; chat and evaluation work as with other checkpoints."""

from __future__ import annotations

import hashlib
import itertools
import json

import pytest
import torch

from chatbot import Chatbot, ChatSession
from chatbot.checkpoint.convert import copy
from chatbot.checkpoint.folder import load_model
from chatbot.errors import XianliaoError
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.run import evaluate
from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer
from tests.chat_models import write_chat_model
from tests.conftest import SAMPLES
from training.cli import main
from training.data.packing import PackedData
from training.data.turn_store import TurnStore
from training.lora import add_lora
from training.optim.regularizers import Objective
from training.reporting.logs import read_metrics
from training.run import train
from training.settings import Regularization, SettingsError, TrainSettings

pytest.importorskip("peft", reason="LoRA needs peft")


@pytest.fixture(scope="module", params=["qwen2", pytest.param("llama", marks=pytest.mark.slow)])
def base(request, dialogues, tmp_path_factory):
    """A tiny chat model and the samples, prepared with its tokenizer."""
    from data_prep.pipeline import build
    from data_prep.settings import PrepareSettings

    folder = tmp_path_factory.mktemp("base")
    texts = [turn for turns in dialogues for turn in turns]
    write_chat_model(folder / "model", texts, request.param)
    build([str(SAMPLES)], folder / "set", PrepareSettings(tokenizer=str(folder / "model"), valid_share=0.1))
    return folder


def settings_for(base, output, **changes) -> TrainSettings:
    defaults = {
        "data": [str(base / "set")],
        "output": str(output),
        "init": str(base / "model"),
        "row_tokens": 192,
        "batch_rows": 4,
        "micro_batch_rows": 2,
        "learning_rate": 2e-2,
        "warmup_steps": 2,
        "max_steps": 8,
        "eval_every": 4,
        "save_every": 2,
        "eval_dialogues": 20,
        "lora_rank": 4,
        "lora_alpha": 8.0,
        "threads": 1,
        "device": "cpu",
    }
    return TrainSettings(**{**defaults, **changes})


@pytest.fixture(scope="module")
def tuned(base, tmp_path_factory):
    output = tmp_path_factory.mktemp("tuned") / "lora"
    train(settings_for(base, output))
    return output


def adapter_hash(folder) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_it_learns_and_leaves_a_small_adapter(tuned, base):
    metrics = read_metrics(tuned)
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.3
    valid = [entry["valid_nats_per_unit"] for entry in metrics if "valid_nats_per_unit" in entry]
    assert valid[1] < valid[0]
    assert not (tuned / "model.safetensors").exists()
    base_size = (base / "model" / "model.safetensors").stat().st_size
    newest = sorted((tuned / "resume").iterdir())[-1]
    assert (newest / "model.safetensors").stat().st_size < base_size / 2
    record = json.loads((tuned / "training.json").read_text(encoding="utf-8"))
    assert record["initialised_from"] == {"imported_from": "model"}
    assert record["settings"]["lora_rank"] == 4
    assert str(base) not in json.dumps(record)


def test_a_checkpoint_keeps_the_decoder_settings_of_its_base(base, tmp_path):
    path = base / "model" / "generation_config.json"
    before = path.read_text() if path.is_file() else None
    theirs = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.8, "repetition_penalty": 1.05}
    changes = {"max_steps": 1, "eval_every": 1, "eval_dialogues": 2}
    try:
        path.write_text(json.dumps({**theirs, "eos_token_id": [1, 2], "transformers_version": "5"}))
        train(settings_for(base, tmp_path / "run", **changes))
        train(settings_for(base, tmp_path / "more", init=str(tmp_path / "run"), **changes))
        for name in ("run", "more"):
            generation = json.loads((tmp_path / name / "generation_config.json").read_text())
            assert {key: generation[key] for key in theirs} == theirs
            assert isinstance(generation["eos_token_id"], int)
            assert generation["floor_start_tokens"] > 1
            assert Chatbot.from_pretrained(tmp_path / name).settings.top_k == 20
        path.write_text(json.dumps({"temperature": 0}))
        with pytest.raises(SettingsError, match=r"generation_config.json has decoder settings.*temperature"):
            train(settings_for(base, tmp_path / "zero", **changes))
    finally:
        path.unlink()
        if before is not None:
            path.write_text(before)


def test_the_base_stays_as_it_was(tuned, base):
    unmerged, frozen = load_model(tuned, merge=False), load_model(base / "model")
    names = {
        name.replace("network.base_model.model.", "network.").replace(".base_layer", "")
        for name in unmerged.state_dict()
    }
    assert names >= set(frozen.state_dict())
    weights = {
        name.replace("network.base_model.model.", "network.").replace(".base_layer", ""): tensor
        for name, tensor in unmerged.state_dict().items()
    }
    for name, tensor in frozen.state_dict().items():
        assert torch.equal(weights[name], tensor), name


def test_it_chats_and_is_evaluated(tuned, dialogues, tmp_path):
    session = ChatSession(Chatbot.from_pretrained(tuned), method="greedy", max_reply_tokens=12)
    text = session.reply("你好", seed=0)
    session.reply("<|im_end|> 今天天气怎么样", seed=0)
    session.undo()
    assert session.turns == ["你好", text]
    pieces = list(session.stream("再见", seed=0))
    assert all(after.startswith(before) for before, after in itertools.pairwise(pieces))
    merged = tmp_path / "merged"
    copy(tuned, merged)
    again = ChatSession(Chatbot.from_pretrained(merged), method="greedy", max_reply_tokens=12)
    assert again.reply("你好", seed=0) == text
    data = tmp_path / "some.jsonl"
    data.write_text("\n".join(json.dumps(turns, ensure_ascii=False) for turns in dialogues[:8]), encoding="utf-8")
    report = evaluate([session.bot], data, tmp_path / "report", grid=Grid((16,), {"default": {}}), max_contexts=4)[
        "report"
    ]
    assert 0 < report["checkpoints"][0]["quality"]["nats_per_unit"] < 20


@pytest.mark.slow
def test_a_stopped_run_goes_on_to_the_same_weights(tuned, base, tmp_path, monkeypatch):
    from training.run import Run

    step, calls = Run._step, []

    def killed(self, *args, **kwargs):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return step(self, *args, **kwargs)

    monkeypatch.setattr(Run, "_step", killed)
    with pytest.raises(KeyboardInterrupt):
        train(settings_for(base, tmp_path / "run"))
    monkeypatch.undo()
    train(settings_for(base, tmp_path / "run", resume=True))
    assert adapter_hash(tmp_path / "run") == adapter_hash(tuned)


@pytest.mark.slow
def test_an_adapter_is_trained_on(tuned, base, tmp_path):
    record = train(settings_for(base, tmp_path / "more", init=str(tuned), max_steps=2, eval_every=2, warmup_steps=1))
    assert record["initialised_from"]["step"] == 8
    first, last = read_metrics(tmp_path / "more")[0]["loss"], read_metrics(tuned)[0]["loss"]
    assert first < last - 0.2
    assert Chatbot.from_pretrained(tmp_path / "more").reply(["你好"], seed=0) is not None


def test_rows_hold_what_they_say(base):
    tokenizer = DialogueTokenizer.load(base / "set")
    layout = LAYOUTS[load_model(base / "model").config.layout](tokenizer)
    data = PackedData(TurnStore([str(base / "set")], "train"), layout, 96, 4, 0, tokenizer.pad_id)
    for rows in data.batches(0)[:8]:
        batch = data.tensors(rows)
        assert int((batch["labels"] != -100).sum()) == data.targets(rows)


def test_settings_that_a_foreign_model_cannot_have(base, tmp_path):
    with pytest.raises(SettingsError, match="muon supports only models of this project"):
        train(settings_for(base, tmp_path / "a", optimizer="muon"))
    with pytest.raises(SettingsError, match=r"lora-rank.*lora-alpha"):
        train(settings_for(base, tmp_path / "b", lora_rank=0, lora_alpha=0.0))


@pytest.mark.slow
def test_regularizers_and_checkpointing_reach_the_adapter(tuned, base):
    """Each changes the gradient of the adapter; checkpointing of the layers does not."""
    tokenizer = DialogueTokenizer.load(base / "set")
    layout = LAYOUTS[tokenizer.layout](tokenizer)
    data = PackedData(TurnStore([str(base / "set")], "train"), layout, 160, 2, 0, tokenizer.pad_id)
    rows = data.batches(0)[0]

    def gradient(checkpointing: bool = False, **changes) -> torch.Tensor:
        model = add_lora(load_model(tuned, merge=False), settings_for(base, base / "none")).train()
        if checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        torch.manual_seed(0)
        objective = Objective(model, model, Regularization(**changes))
        objective.backward(data.tensors(rows), data.targets(rows), torch.Tensor.backward)
        named = dict(model.named_parameters())
        assert {name for name in named if named[name].grad is not None} == {name for name in named if "lora_" in name}
        return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])

    plain = gradient()
    torch.testing.assert_close(gradient(checkpointing=True), plain, rtol=1e-4, atol=1e-6)
    for name in ("dropout", "embedding_noise", "label_smoothing", "fgm", "gradient_penalty", "vat"):
        changed = gradient(**{name: 0.3})
        assert changed.isfinite().all()
        assert (changed - plain).norm() > 1e-3 * plain.norm(), name


def test_another_tokenizer_is_refused(base, prepared, tmp_path):
    with pytest.raises(XianliaoError, match="--tokenizer"):
        train(settings_for(base, tmp_path / "a", data=[str(prepared)]))


@pytest.mark.slow
def test_from_the_command_line(base, tmp_path, capsys):
    from chatbot.cli import chat
    from data_prep.cli import main as prepare

    assert prepare(["--output", str(base / "set"), "--preview", "1", "--tokens"]) == 0
    shown = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].strip() for line in shown[1:3]] == ["person", "bot"]
    assert "⏎" in shown[1]
    call = ["--data", str(base / "set"), "--init", str(base / "model"), "--output", str(tmp_path / "run")]
    options = ["--max-steps", "1", "--row-tokens", "128", "--lora-rank", "2", "--eval-dialogues", "2", "--threads", "1"]
    assert main([*call, *options, "--device", "cpu"]) == 0
    assert chat(["--checkpoint", str(tmp_path / "run"), "--message", "你好", "--seed", "1", "--device", "cpu"]) == 0
