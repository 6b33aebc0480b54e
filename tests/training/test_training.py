from __future__ import annotations

import hashlib
import itertools
import json
import shutil

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from chatbot.checkpoint.folder import load_model
from chatbot.decoding.settings import settings_from
from chatbot.errors import XianliaoError
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.scoring import score_turns
from chatbot.text.dialogue import count_units
from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer
from tests.conftest import tiny_config
from training.cli import main
from training.data.packing import PackedData
from training.data.turn_store import TurnStore
from training.optim.clipping import clip_gradients
from training.optim.schedule import schedule
from training.reporting.logs import read_metrics
from training.run import Run, train
from training.settings import ModelSettings, SettingsError, StageSettings, TrainSettings
from training.stage import Stage
from training.state.run_folder import ResumeError

TINY = ModelSettings(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, head_dim=16, intermediate_size=64)


def settings_for(prepared, output, **changes) -> TrainSettings:
    defaults = {
        "data": [str(prepared)],
        "output": str(output),
        "model": TINY,
        "row_tokens": 128,
        "batch_rows": 8,
        "micro_batch_rows": 4,
        "learning_rate": 3e-3,
        "warmup_steps": 5,
        "max_steps": 12,
        "eval_every": 6,
        "save_every": 4,
        "threads": 1,
        "device": "cpu",
    }
    return TrainSettings(**{**defaults, **changes})


def weights_hash(folder) -> str:
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole_run(prepared, tmp_path_factory):
    """An uninterrupted run, to compare with."""
    output = tmp_path_factory.mktemp("run") / "whole"
    train(settings_for(prepared, output))
    return output


def test_a_run_learns_and_leaves_a_checkpoint(whole_run, prepared):
    metrics = read_metrics(whole_run)
    assert [entry["step"] for entry in metrics] == list(range(1, 13))
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 0.1
    valid = [entry["valid_nats_per_unit"] for entry in metrics if "valid_nats_per_unit" in entry]
    assert len(valid) == 2
    assert valid[1] < valid[0]
    record = json.loads((whole_run / "training.json").read_text(encoding="utf-8"))
    assert record["best"] == valid[1]
    assert record["row_utilisation"] > 0.8  # two dialogues a row
    assert (whole_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    generation = json.loads((whole_run / "generation_config.json").read_text())
    assert generation["floor_start_tokens"] > 5
    assert load_model(whole_run).config.hidden_size == 32
    assert DialogueTokenizer.load(whole_run).to_json() == DialogueTokenizer.load(prepared).to_json()


def test_a_run_keeps_the_banned_words_of_its_start(whole_run, prepared, tmp_path):
    start, words = tmp_path / "start", ["妈的", "!妈妈的"]
    shutil.copytree(whole_run, start)
    path = start / "generation_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "banned_words": words}), encoding="utf-8")
    train(settings_for(prepared, tmp_path / "more", init=str(start), model=ModelSettings(), max_steps=1, eval_every=1))
    generation = json.loads((tmp_path / "more" / "generation_config.json").read_text(encoding="utf-8"))
    assert generation["banned_words"] == words
    assert settings_from(generation).banned_words == tuple(words)


def test_the_same_settings_give_the_same_weights(whole_run, prepared, tmp_path):
    train(settings_for(prepared, tmp_path / "again"))
    assert weights_hash(tmp_path / "again") == weights_hash(whole_run)


def test_an_output_is_never_overwritten_and_settings_may_not_change(whole_run, prepared, tmp_path):
    before = weights_hash(whole_run)
    with pytest.raises(ResumeError, match="--resume"):
        train(settings_for(prepared, whole_run))
    with pytest.raises(ResumeError, match=r"--learning-rate changed.*--init"):
        train(settings_for(prepared, whole_run, learning_rate=1.0, resume=True))
    with pytest.raises(ResumeError, match="no saved state"):
        train(settings_for(prepared, tmp_path / "new", resume=True))
    assert weights_hash(whole_run) == before


def test_a_run_that_ended_before_its_first_save_is_resumed_from_its_start(prepared, tmp_path):
    """Its folder may hold a checkpoint, because validation comes before the first save."""
    train(settings_for(prepared, tmp_path / "run", max_steps=4))
    before, log = weights_hash(tmp_path / "run"), (tmp_path / "run" / "metrics.jsonl").read_text(encoding="utf-8")
    shutil.rmtree(tmp_path / "run" / "resume")
    train(settings_for(prepared, tmp_path / "run", max_steps=4, resume=True))
    assert weights_hash(tmp_path / "run") == before
    steps = [json.loads(line)["step"] for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [json.loads(line)["step"] for line in log.splitlines()]


def test_a_folder_with_other_things_is_left_alone(prepared, tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "config.json").write_text("precious")
    for output in (tmp_path / "home", prepared):
        with pytest.raises(ResumeError, match="not empty"):
            train(settings_for(prepared, output))
    assert (tmp_path / "home" / "config.json").read_text() == "precious"


def test_a_damaged_save_is_explained(prepared, tmp_path):
    train(settings_for(prepared, tmp_path / "run", max_steps=4))
    newest = sorted((tmp_path / "run" / "resume").iterdir())[-1]
    (newest / "optimizer.pt").write_bytes(b"short")
    with pytest.raises(ResumeError, match="Remove that folder"):
        train(settings_for(prepared, tmp_path / "run", max_steps=4, resume=True))
    (newest / "progress.json").write_text("{}")
    with pytest.raises(ResumeError, match="Remove that folder"):
        train(settings_for(prepared, tmp_path / "run", max_steps=4, resume=True))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "average.safetensors", "progress.json"])
def test_a_flipped_bit_in_a_save_is_noticed(name, prepared, tmp_path):
    """The same number of bytes, and each file can still be read: only its checksum tells."""
    changes = {"max_steps": 2, "weight_average": 0.9}
    train(settings_for(prepared, tmp_path / "run", **changes))
    newest = sorted((tmp_path / "run" / "resume").iterdir())[-1]
    content = bytearray((newest / name).read_bytes())
    if name == "progress.json":
        content[content.index(b",", content.index(b'"tokens"')) - 1] ^= 1  # the last digit
    else:
        content[len(content) // 2] ^= 1
    (newest / name).write_bytes(content)
    with pytest.raises(ResumeError, match=f"checksum of {name} is wrong.*Remove that folder"):
        train(settings_for(prepared, tmp_path / "run", resume=True, **changes))


def test_a_save_without_checksums_is_resumed(prepared, tmp_path):
    """Earlier versions wrote none."""
    train(settings_for(prepared, tmp_path / "run", max_steps=2))
    progress = sorted((tmp_path / "run" / "resume").iterdir())[-1] / "progress.json"
    content = json.loads(progress.read_text())
    assert set(content.pop("sha256")) == {"model.safetensors", "optimizer.pt", "progress.json"}
    progress.write_text(json.dumps(content))
    assert train(settings_for(prepared, tmp_path / "run", max_steps=2, resume=True))["step"] == 2


def test_training_from_a_checkpoint(whole_run, prepared, tmp_path):
    train(
        settings_for(prepared, tmp_path / "more", init=str(whole_run), model=ModelSettings(), max_steps=2, eval_every=2)
    )
    start = read_metrics(whole_run)[-1]["loss"]
    assert read_metrics(tmp_path / "more")[0]["loss"] < start + 0.5
    record = json.loads((tmp_path / "more" / "training.json").read_text(encoding="utf-8"))
    assert record["initialised_from"]["step"] == 12
    assert record["settings"]["init"] == "whole"
    assert record["shape"]["hidden_size"] == 32
    with pytest.raises(SettingsError, match="--init exclude"):
        train(settings_for(prepared, tmp_path / "wide", init=str(whole_run)))
    assert str(tmp_path) not in json.dumps(record)  # no path of this machine


def test_a_foreign_tokenizer_is_refused(checkpoint, tmp_path, prepared):
    from data_prep.pipeline import build
    from data_prep.settings import PrepareSettings
    from tests.conftest import SAMPLES

    build([str(SAMPLES)], tmp_path / "other", PrepareSettings(vocab_size=500))
    with pytest.raises(SettingsError, match="different tokenizers"):
        train(settings_for(tmp_path / "other", tmp_path / "run", init=str(checkpoint), model=ModelSettings()))
    with pytest.raises(SettingsError, match="different tokenizers"):
        train(settings_for(prepared, tmp_path / "run", data=[str(prepared), str(tmp_path / "other")]))


def gradients(model, data, parts, total) -> list[torch.Tensor]:
    model.zero_grad()
    for rows in parts:
        model(**data.tensors(rows), num_items_in_batch=total).loss.backward()
    return [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


def test_accumulation_equals_one_large_batch(tokenizer, layout, prepared):
    """Rows carry unequal numbers of targets; float64 so that only a wrong formula can differ."""
    torch.manual_seed(0)
    model = XianliaoForCausalLM(tiny_config(tokenizer)).double()
    data = PackedData(TurnStore([str(prepared)], "train"), layout, 64, 8, seed=0, pad_id=0)
    rows = data.batches(0)[0]
    rows = [rows[0][:1], *rows[1:], []]
    total = data.targets(rows)
    whole = gradients(model, data, [rows], total)
    parts = [rows[:2], rows[2:3], rows[3:]]
    split = gradients(model, data, parts, total)
    for a, b in zip(split, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)
    mean_of_means = [0.0] * len(whole)
    for part in parts:
        for number, grad in enumerate(gradients(model, data, [part], data.targets(part))):
            mean_of_means[number] = mean_of_means[number] + grad / len(parts)
    assert max((a - b).abs().max() for a, b in zip(mean_of_means, whole, strict=True)) > 1e-4


def parameter_with(grad: list[float]) -> torch.nn.Parameter:
    parameter = torch.nn.Parameter(torch.zeros(len(grad), dtype=torch.float64))
    parameter.grad = torch.tensor(grad, dtype=torch.float64)
    return parameter


@given(st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=8), st.floats(0.01, 100))
def test_clipping_inequalities(grad, gamma):
    """norm / 2 <= soft <= norm, both along g and at most gamma."""
    results = {}
    for kind in ("none", "norm", "soft"):
        parameter = parameter_with(grad)
        norm = clip_gradients([parameter], kind, gamma)
        assert norm == pytest.approx(torch.tensor(grad).double().norm().item())
        results[kind] = parameter.grad
    sizes = {kind: value.norm().item() for kind, value in results.items()}
    assert torch.equal(results["none"], torch.tensor(grad, dtype=torch.float64))
    assert sizes["norm"] / 2 * (1 - 1e-9) <= sizes["soft"] <= sizes["norm"] * (1 + 1e-9) + 1e-12
    assert sizes["norm"] <= gamma * (1 + 1e-9)
    assert sizes["norm"] == pytest.approx(min(sizes["none"], gamma))
    for kind in ("norm", "soft"):
        assert torch.dot(results[kind], results["none"]).item() == pytest.approx(sizes[kind] * sizes["none"], abs=1e-9)


def test_soft_clipping_of_a_zero_gradient_is_zero():
    for kind in ("norm", "soft"):
        parameter = parameter_with([0.0, 0.0])
        assert clip_gradients([parameter], kind, 1.0) == 0
        assert torch.equal(parameter.grad, torch.zeros(2, dtype=torch.float64))


@pytest.mark.parametrize("kind", ["none", "norm", "soft"])
def test_clipping_without_gradients_has_norm_zero(kind):
    assert clip_gradients([torch.nn.Parameter(torch.ones(2))], kind, 1.0) == 0


def test_clipping_happens_once_on_the_accumulated_gradient(prepared, tmp_path, monkeypatch):
    calls = []

    def counted(parameters, kind, clip_norm):
        parameters = list(parameters)
        calls.append(clip_gradients(parameters, "none", clip_norm))
        return clip_gradients(parameters, kind, clip_norm)

    monkeypatch.setattr("training.step.clip_gradients", counted)
    norms = {}
    for micro in (8, 2):
        calls.clear()
        train(settings_for(prepared, tmp_path / str(micro), micro_batch_rows=micro, max_steps=3, clip_norm=0.1))
        norms[micro] = list(calls)
        assert len(calls) == 3
    assert norms[2] == pytest.approx(norms[8], rel=1e-3)


def test_schedule_warms_up_and_decays():
    settings = TrainSettings(["x"], "y", warmup_steps=10, final_learning_rate_share=0.1)
    shares = [schedule(step, 100, settings) for step in range(101)]
    assert shares[0] == pytest.approx(0.1)
    assert shares[9] == 1.0
    assert shares[100] == pytest.approx(0.1)
    assert all(a <= b for a, b in itertools.pairwise(shares[:10]))
    assert all(a >= b for a, b in itertools.pairwise(shares[10:]))


def test_all_faults_of_the_settings_come_at_once():
    with pytest.raises(SettingsError) as error:
        TrainSettings(["x"], "y", epochs=0, batch_rows=0, clip_norm=-1, seed=-1, warmup_steps=-5).check()
    assert all(name in str(error.value) for name in ("--epochs", "--batch-rows", "--clip-norm", "--seed", "--warm"))


def test_a_turn_longer_than_a_row_and_tiny_data(tmp_path):
    from data_prep.pipeline import build
    from data_prep.settings import PrepareSettings

    source = tmp_path / "one.jsonl"
    source.write_text(json.dumps(["".join(map(chr, range(0x4E00, 0x4E40))), "好"]), encoding="utf-8")
    build([str(source)], tmp_path / "one", PrepareSettings(vocab_size=400, valid_share=0))
    record = train(settings_for(tmp_path / "one", tmp_path / "run", row_tokens=16, max_steps=2, eval_every=1))
    assert record["left_out_turns"] == 1
    assert (tmp_path / "run" / "model.safetensors").exists()  # without a validation split, the newest weights


def test_command_line(prepared, tmp_path, capsys):
    config = tmp_path / "c.yaml"
    config.write_text("model:\n  hidden_size: 32\n  num_hidden_layers: 1\nrow_tokens: 64\nmax_steps: 2\nthreads: 1\n")
    call = ["--data", str(prepared), "--output", str(tmp_path / "run"), "--config", str(config), "--max-steps", "1"]
    assert main(call) == 0
    captured = capsys.readouterr()
    assert "1 steps" in captured.out  # a flag beats the file
    from_file = "model.hidden-size 32, model.num-hidden-layers 1, row-tokens 64, threads 1"
    assert f"settings by c.yaml: {from_file}; flag: max-steps 1, data {prepared}, output " in captured.err
    assert "(all others are defaults" in captured.err
    flag_first = ["--max-steps", "1", *call[:2], "--output", str(tmp_path / "run2"), *call[4:6]]
    assert main(flag_first) == 0
    assert "1 steps" in capsys.readouterr().out  # independent of the order
    assert main(call) == 1
    assert "--resume" in capsys.readouterr().err
    assert main([*call, "--resume"]) == 0
    assert yaml.safe_load((tmp_path / "run" / "settings.yaml").read_text())["row_tokens"] == 64
    assert main(["--data", str(prepared), "--output", str(config / "run"), "--config", str(config)]) == 1
    assert "error: Cannot open " in capsys.readouterr().err
    assert main(["--data", str(tmp_path), "--output", str(tmp_path / "no")]) == 1
    assert "is not a prepared set" in capsys.readouterr().err


def test_every_fault_comes_at_once_with_the_nearest_name(prepared, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "learning_rat: 1\nmodel:\n  hiden_size: 32\n  num_hidden_layers: two\nbatch_rows: many\nclip: hard\n"
        "regularization: {dropout: 1.5}\nstages:\n  - {name: a, epoch: 3}\nrow_tokens: 3\n"
    )
    call = ["--output", str(tmp_path / "run"), "--config", str(bad), "--max-step", "3", "--epochs", "x"]
    assert main(call) == 2
    errors = capsys.readouterr().err
    for fault in (
        *("unknown setting learning_rat; did you mean learning_rate?", "model.hiden_size; did you mean hidden_size?"),
        *("stages[0].epoch; did you mean epochs?", "model.num_hidden_layers cannot be 'two': expected int"),
        *("batch_rows cannot be 'many'", "clip cannot be 'hard'", "unknown flag --max-step; did you mean --max-steps?"),
        *("--epochs x: expected float", "--row-tokens must be at least 16", "--regularization.dropout must be"),
        "--data is missing",
    ):
        assert fault in errors, fault
    assert errors.count("\n") == 1
    assert not (tmp_path / "run").exists()
    assert main(["--data", str(prepared), "--config", str(tmp_path / "none.yaml")]) == 2
    assert f"--config {tmp_path / 'none.yaml'} is neither a file nor a preset" in capsys.readouterr().err
    bad.write_text("- a\n- b")
    assert main(["--data", str(prepared), "--output", "x", "--config", str(bad)]) == 2
    assert "must hold a mapping" in capsys.readouterr().err
    assert main(["--help"]) == 0
    assert "--regularization.fgm" in capsys.readouterr().out


def test_faults_inside_stages_and_mappings_are_named(prepared, tmp_path, capsys):
    bad = tmp_path / "bad.yaml"
    bad.write_text(
        "model: {layer_types: null}\nregularization: 3\nclip: soft\nclip_norm: .inf\ncompile: true\n"
        "stages: [{name: a, epochs: x}, {name: 3}, {regularization: [1]}, {regularization: {fgm: 1}}, {data: b:0}, {}]"
    )
    assert main(["--data", str(prepared), "--output", str(tmp_path / "run"), "--config", str(bad)]) == 2
    errors = capsys.readouterr().err
    for fault in (
        *("model.layer_types must be a list", "bad.yaml: regularization must be a mapping", "finite with --clip soft"),
        *("stages[0].epochs cannot be 'x': expected float", "stages[1].name cannot be 3: expected str"),
        *("stages[2].regularization must be a mapping", "stage 4: --compile and --regularization.fgm exclude"),
        "stage 5: --data b:0: the weight",
    ):
        assert fault in errors, fault
    assert errors.count("\n") == 1
    bad.write_text(f"data: {prepared}\nmax_steps: 1\nmodel: {{hidden_size: 32, num_hidden_layers: 1}}\nthreads: 1")
    assert main(["--output", str(tmp_path / "run"), "--config", str(bad)]) == 0
    again = ["--output", str(tmp_path / "again"), "--config", str(tmp_path / "run" / "settings.yaml")]
    assert main([*again[:1], str(tmp_path / "run"), *again[2:], "--resume"]) == 0
    assert main(again) == 0  # settings.yaml of a resumed run starts a new one


def test_weight_decay_of_a_stage_comes_back_after_a_stage_without(prepared, tmp_path, monkeypatch):
    seen = []
    stage = Run._run_stage

    def noted(self, now):
        stage(self, now)
        seen.append([[group["weight_decay"] for group in o.param_groups] for o in self.trained.optimizers])

    monkeypatch.setattr(Run, "_run_stage", noted)
    stages = [StageSettings(weight_decay=0.0, max_steps=1), StageSettings(weight_decay=0.5, max_steps=1)]
    train(settings_for(prepared, tmp_path / "run", stages=stages, optimizer="muon", max_steps=None))
    assert seen == [[[0.0, 0.0], [0.0]], [[0.5, 0.0], [0.5]]]


def test_divergence_stops_with_a_sentence_and_keeps_the_last_good_state(prepared, tmp_path):
    settings = settings_for(prepared, tmp_path / "run", learning_rate=1e30, clip="none", warmup_steps=1, eval_every=1)
    with pytest.raises(XianliaoError, match="diverged"):
        train(settings)
    assert not (tmp_path / "run" / "model.safetensors").exists()  # no step of it was good


def test_validation_is_the_mixture_that_is_trained_on(prepared, tmp_path):
    """A set of weight 0.1 gives a tenth of its validation dialogues; else another mixture chooses the checkpoint."""
    tokenizer = DialogueTokenizer.load(str(prepared))
    layout = LAYOUTS["dialogpt"](tokenizer)

    def count(*data: str) -> int:
        return len(Stage(settings_for(prepared, tmp_path, data=list(data)), 0, tokenizer, layout).valid_dialogues)

    whole = count(str(prepared))
    assert count(str(prepared), f"{prepared}:3") == 2 * whole
    assert count(str(prepared), f"{prepared}:0.1") == whole + -(-whole // 10)
    assert count(f"{prepared}:0.5") == -(-whole // 2)


def test_where_only_replies_are_learnt_only_they_validate(prepared, tmp_path):
    """The counted turns are the replies; the other turns are read as context."""
    tokenizer = DialogueTokenizer.load(str(prepared))
    layout = LAYOUTS["dialogpt"](tokenizer)
    whole, replies = (
        Stage(settings_for(prepared, tmp_path, data=[data]), 0, tokenizer, layout)
        for data in (str(prepared), f"{prepared}:replies")
    )
    assert replies.valid_dialogues == whole.valid_dialogues  # the context is still there
    texts = [[tokenizer.decode(ids) for ids in turns] for turns in replies.valid_dialogues]
    assert replies.valid_units == [count_units(turns[1::2]) for turns in texts]
    assert whole.valid_units == [count_units(turns) for turns in texts]
    run = train(settings_for(prepared, tmp_path / "run", data=[f"{prepared}:replies"], max_steps=2, eval_every=2))
    assert run["data"][0]["learnt"] == "replies"
    scores = score_turns(load_model(tmp_path / "run"), layout, replies.valid_dialogues)
    nats = sum(sum(turns[1::2]) for turns in scores)
    assert run["best"] == pytest.approx(nats / sum(replies.valid_units), rel=1e-5)
    with pytest.raises(SettingsError, match="leave out :replies"):
        train(settings_for(prepared, tmp_path / "back", data=[f"{prepared}:replies"], direction="backward"))
