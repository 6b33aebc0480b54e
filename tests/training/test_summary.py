"""What a run says before it starts and after it ends, and what it keeps of the bot that it starts from."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from chatbot.checkpoint.folder import save
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer
from tests.conftest import tiny_config
from training.cli import main
from training.settings import SettingsError
from training.state.run_folder import SAMPLES, own_folder, read_log


@pytest.fixture
def ancestor(prepared, tmp_path):
    tokenizer = DialogueTokenizer.load(prepared)
    model = XianliaoForCausalLM(tiny_config(tokenizer))
    folder = tmp_path / "ancestor"
    settings = {
        "temperature": 0.4,
        "top_p": 0.95,
        "floor_start_tokens": 57,
        "banned_words": ["呵呵"],
        "no_repeat_ngram": 3,
    }
    save(folder, model, tokenizer, settings, {"step": 0})
    return folder


def flags(prepared, ancestor, output):
    return ["--data", str(prepared), "--init", str(ancestor), "--output", str(output), "--device", "cpu",
            "--row-tokens", "64", "--batch-rows", "2", "--max-steps", "2", "--eval-every", "1"]  # fmt: skip


def test_a_run_ends_with_before_and_after_one_sample_and_the_next_command(prepared, ancestor, tmp_path, capsys):
    output = tmp_path / "run"
    assert main(flags(prepared, ancestor, output)) == 0
    said = capsys.readouterr()
    settings = [line for line in said.err.splitlines() if line.startswith("settings by flag: ")]
    assert len(settings) == 1
    assert "max-steps 2" in settings[0]
    assert "lora" not in settings[0]
    record = read_json(output / "training.json")
    lines = said.out.splitlines()
    assert lines[0].startswith(f"{output}: 2 steps, ")
    count = record["valid_dialogues"]
    assert f"before and after: {record['before']:.3f} -> {record['best']:.3f} nats/unit ({count} dialogues)" in lines[1]
    assert ("so few validation dialogues" in said.out) == (count < 50)
    samples = read_log(output / SAMPLES)
    best = [entry for entry in samples if entry["step"] == record["best_step"]][-1]
    before = next(entry for entry in samples if entry["step"] == 0 and entry["prompt"] == best["prompt"])
    assert f"sample: {best['prompt'][-1]} -> {best['reply']}" in lines
    assert f"  before the training: {before['reply']}" in lines
    assert lines[-1] == f"next: xianliao-chat --checkpoint {output}"
    assert (output / "curves.png").stat().st_size > 5000


def test_fine_tuning_keeps_the_decoder_of_the_ancestor(prepared, ancestor, tmp_path):
    assert main(flags(prepared, ancestor, tmp_path / "run")) == 0
    before, after = (read_json(folder / "generation_config.json") for folder in (ancestor, tmp_path / "run"))
    assert {name: after[name] for name in before} == before


def test_a_dry_run_says_how_large_the_run_is_and_writes_nothing(prepared, ancestor, tmp_path, capsys):
    output = tmp_path / "run"
    assert main([*flags(prepared, ancestor, output), "--dry-run"]) == 0
    said = capsys.readouterr().out
    for words in ("M parameters", "2 steps, ", "tokens per epoch", "GB", "time: about ", "threads)"):
        assert words in said
    assert not output.exists()


def test_a_failed_start_leaves_no_folder_without_content(tmp_path):
    def start(output: Path, files: tuple[str, ...]) -> None:
        with own_folder(output):
            for name in files:
                (output / name).write_text("{}")
            raise SettingsError("no")

    for files in ((), ("metrics.jsonl",)):
        output = tmp_path / f"run{len(files)}"
        with pytest.raises(SettingsError):
            start(output, files)
        assert output.exists() == bool(files)


def test_presets_have_names(prepared, tmp_path, capsys):
    from training.arguments import preset_names, read_settings

    assert preset_names() == ["base", "cpu_finetune", "cpu_smoke", "small"]
    for spelling in ("cpu_finetune", "cpu_finetune.yml", "training/presets/cpu_finetune.yaml"):
        settings, origins = read_settings(["--data", "x", "--output", "y", "--config", spelling])
        assert settings.epochs == 8
        assert origins["epochs"] == "cpu_finetune.yaml"


def test_another_tokenizer_is_noticed_before_torch_is_needed(prepared, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "training.run", None)
    assert main(flags(prepared, "default", tmp_path / "run")) == 1
    assert "different tokenizers" in capsys.readouterr().err
    assert not (tmp_path / "run").exists()
