"""Settings from somebody else: every size has an upper bound, and the memory of a run is compared before it is allocated."""

from __future__ import annotations

import time
from dataclasses import fields
from pathlib import Path
from typing import get_type_hints

import pytest
import torch

from chatbot.model.config import XianliaoConfig
from training.arguments import read_settings
from training.optim import memory
from training.optim.limits import MAX_BATCH_TOKENS, MAXIMA
from training.optim.memory import MAX_PARAMETERS, check_parameters, check_passes
from training.settings import LatentTraining, ModelSettings, SettingsError, StageSettings, TrainSettings
from training.setup import build_model

CPU, GPU = torch.device("cpu"), torch.device("cuda")
GIGABYTES = 10**9


def whole_numbers(kind, group=""):
    hints = get_type_hints(kind)
    return {group + entry.name for entry in fields(kind) if hints[entry.name] in (int, int | None)}


def test_every_whole_number_has_an_upper_bound():
    names = whole_numbers(TrainSettings) | whole_numbers(StageSettings) | whole_numbers(ModelSettings, "model.")
    names |= whole_numbers(LatentTraining, "latent_training.") | {"epochs"}
    assert names - {"seed"} == set(MAXIMA)


@pytest.mark.parametrize("name", MAXIMA)
def test_a_value_above_the_bound_is_refused_in_words(tmp_path, name):
    group, _, last = name.rpartition(".")
    for value, is_refused in ((MAXIMA[name], False), (MAXIMA[name] + 1, True), (10**30, True)):
        entry = f"{last}: {value}"
        (tmp_path / "a.yaml").write_text(f"{group}: {{{entry}}}" if group else entry)
        try:
            read_settings(["--data", "a", "--output", "b", "--config", str(tmp_path / "a.yaml")])
            words = ""
        except SettingsError as error:
            words = str(error)
        flag = "--" + name.replace("_", "-")
        assert (f"{flag} must be at most {MAXIMA[name]}, far above the usual values, got " in words) is is_refused
        assert "\n" not in words


def test_a_stage_has_the_same_bounds():
    stages = [StageSettings(name="first"), StageSettings(row_tokens=10**9)]
    with pytest.raises(SettingsError, match="stage 2: --row-tokens must be at most 65536"):
        TrainSettings(["a"], "b", stages=stages).check()


def test_the_tokens_of_a_batch_are_bounded():
    rows = MAX_BATCH_TOKENS // 512
    TrainSettings(["a"], "b", row_tokens=512, batch_rows=rows).check()
    with pytest.raises(
        SettingsError, match="--row-tokens times --batch-rows gives 16777728 tokens, more than the limit of 16777216,"
    ):
        TrainSettings(["a"], "b", row_tokens=512, batch_rows=rows + 1).check()


HUGE = {
    "deep": {"hidden_size": 32768, "num_hidden_layers": 24, "num_attention_heads": 64, "head_dim": 512},
    "wide": {"hidden_size": 65536, "num_hidden_layers": 1, "intermediate_size": 1 << 20},
    "largest": {name.removeprefix("model."): most for name, most in MAXIMA.items() if name.startswith("model.")},
    "table": {"layer_types": ["synthesizer_fixed_random"], "max_position_embeddings": 1 << 24},
}


@pytest.mark.parametrize("shape", HUGE.values(), ids=HUGE)
def test_a_model_that_does_not_fit_is_refused_before_its_memory_is_allocated(tokenizer, monkeypatch, shape):
    monkeypatch.setattr(memory, "memory_bytes", lambda: 64 * GIGABYTES)
    built = []
    monkeypatch.setattr("training.setup.XianliaoForCausalLM", watched(built))
    started = time.process_time()
    with pytest.raises(
        SettingsError, match=r"parameters, which needs \d+ GB .* has 64 GB of memory\. Make the model smaller\.$"
    ):
        build_model(ModelSettings(**shape), tokenizer)
    assert built == ["meta"]
    assert time.process_time() - started < 10


def watched(built):
    """Return a stand-in for the class of the model that notes the devices on which models are built, and allows no other."""
    from chatbot.model.network import XianliaoForCausalLM

    def build(config):
        built.append(torch.get_default_device().type)
        assert built[-1] == "meta", "memory would be allocated"
        return XianliaoForCausalLM(config)

    return build


def test_the_count_of_parameters_is_bounded_where_the_memory_is_unknown(monkeypatch):
    monkeypatch.setattr(memory, "memory_bytes", lambda: float("inf"))
    with torch.device("meta"):
        fitting, larger = torch.nn.Linear(10**6, 10**4, bias=False), torch.nn.Linear(10**6, 10**5 + 1, bias=False)
    check_parameters(fitting, CPU)
    with pytest.raises(SettingsError, match=f"more than the limit of {MAX_PARAMETERS:,}"):
        check_parameters(larger, CPU)


def test_a_model_for_a_gpu_needs_only_its_weights_in_the_main_memory(monkeypatch):
    monkeypatch.setattr(memory, "memory_bytes", lambda: 8 * GIGABYTES)
    with torch.device("meta"):
        model = torch.nn.Linear(10**6, 10**3, bias=False)  # 4 GB of weights, 16 GB with gradients and moments
    check_parameters(model, GPU)
    with pytest.raises(SettingsError, match=r"needs 16 GB to be trained, but this machine has 8 GB"):
        check_parameters(model, CPU)


def test_planning_a_model_does_not_change_its_weights(tokenizer, monkeypatch):
    shape = ModelSettings(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, head_dim=8, intermediate_size=16)
    torch.manual_seed(3)
    model = build_model(shape, tokenizer)
    torch.manual_seed(3)
    plain = type(model)(model.config)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), plain.parameters(), strict=True))


@pytest.mark.parametrize(
    ("settings", "layer_types"),
    [
        ({"row_tokens": 1 << 16, "micro_batch_rows": 16}, ["linear_elu1"]),
        ({"row_tokens": 1 << 16, "micro_batch_rows": 1}, ["softmax"]),
        ({"stages": [StageSettings(), StageSettings(row_tokens=1 << 16)]}, ["softmax"]),
    ],
)
def test_a_pass_that_does_not_fit_is_refused(monkeypatch, settings, layer_types):
    config = XianliaoConfig(layer_types=layer_types * 6)
    monkeypatch.setattr(memory, "memory_bytes", lambda: 4 * GIGABYTES)
    with pytest.raises(
        SettingsError, match=r"A pass of \d+ rows of 65536 tokens takes at least \d+ GB .* Lower --row-tokens"
    ):
        check_passes(config, TrainSettings(["a"], "b", **settings), CPU)
    check_passes(config, TrainSettings(["a"], "b", **settings), GPU)  # which says so itself


@pytest.mark.parametrize(
    "preset", sorted(Path(memory.__file__).parents[1].glob("presets/*.yaml")), ids=lambda path: path.stem
)
def test_the_presets_are_far_below_the_bounds(preset):
    init = [] if "model:" in preset.read_text(encoding="utf-8") else ["--init", "default"]
    settings, _ = read_settings(["--data", "a", "--output", "b", *init, "--config", str(preset)])
    assert settings.row_tokens * settings.batch_rows * 100 <= MAX_BATCH_TOKENS
    for group, values in (("", vars(settings)), ("model.", vars(settings.model))):
        sizes = {name: value for name, value in values.items() if group + name in MAXIMA and value is not None}
        assert all(MAXIMA[group + name] >= 16 * value for name, value in sizes.items()), preset


def test_a_dry_run_of_a_huge_model_ends_in_a_sentence(prepared, tmp_path, monkeypatch, capsys):
    from training.cli import main

    monkeypatch.setattr(memory, "memory_bytes", lambda: 64 * GIGABYTES)
    monkeypatch.setattr("training.setup.XianliaoForCausalLM", watched([]))
    (tmp_path / "huge.yaml").write_text("model: {hidden_size: 32768, num_hidden_layers: 24, intermediate_size: 131072}")
    arguments = ["--data", str(prepared), "--output", str(tmp_path / "run"), "--config", str(tmp_path / "huge.yaml")]
    for switches in (["--dry-run"], []):
        assert main([*arguments, *switches, "--device", "cpu"]) == 1
        assert "Make the model smaller." in capsys.readouterr().err.splitlines()[-1]
