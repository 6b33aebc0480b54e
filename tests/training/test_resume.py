"""A run that is killed at any moment resumes to exactly the weights of an uninterrupted run."""

from __future__ import annotations

import hashlib
import os
import resource
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import training.validation
from chatbot.checkpoint.folder import load_model
from chatbot.text.dialogue_files import read_dialogues
from tests.conftest import ROOT
from tests.training.test_training import settings_for
from training.data.packing import PackedData
from training.optim.clipping import clip_gradients
from training.optim.regularizers import Objective
from training.reporting.logs import METRICS, read_log, read_metrics
from training.reporting.samples import MAX_MESSAGES
from training.reporting.summary import summary_of
from training.run import train
from training.settings import Regularization, SettingsError, StageSettings
from training.state.run_folder import ResumeError, saved_steps
from training.validation import Validation

SHAPE = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 16, "intermediate_size": 64}
FLAGS = {
    **{f"model.{name}": value for name, value in SHAPE.items()},
    **{"row_tokens": 128, "batch_rows": 8, "micro_batch_rows": 2, "learning_rate": 3e-3, "warmup_steps": 5},
    **{"max_steps": 12, "eval_every": 6, "eval_dialogues": 8, "save_every": 4, "threads": 1, "device": "cpu"},
    "regularization.dropout": 0.1,
}
KILLS = (  # one after the other, on one run: saves are at 4, 8 and 12, validations and checkpoints at 6 and 12
    ("in a step", 3),
    ("half of the optimizer saved", 1),
    ("before a save is complete", 1),
    ("after a save is complete", 1),
    ("in a validation", 1),
    ("in the middle of a checkpoint", 1),
    ("half of the optimizer saved", 1),
    ("in a step", 6),
    ("after a save is complete", 2),
)


def as_flags(settings: dict[str, object]) -> list[str]:
    return [f"--{name.replace('_', '-')}={value}" for name, value in settings.items()]


def command(processes: int, module: str) -> list[str]:
    if processes == 1:
        return [sys.executable, "-m", module]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, "-m", module]


def run(processes: int, prepared: Path, output: Path, *before: str, module: str = "training", **changes) -> int:
    flags = as_flags({**FLAGS, **changes})
    resume = ["--resume"] if saved_steps(output) else []
    call = [*command(processes, module), *before, "--data", str(prepared), "--output", str(output), *flags, *resume]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(call, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=300, check=False)
    if done.returncode != 0 and module == "training":
        raise AssertionError(done.stderr[-3000:])
    return done.returncode


def state_of(output: Path) -> dict[str, str]:
    """Hashes of the checkpoint and of the newest save."""
    files = {"checkpoint": output / "model.safetensors", "weights": saved_steps(output)[-1] / "model.safetensors"}
    hashes = {name: hashlib.sha256(path.read_bytes()).hexdigest() for name, path in files.items()}
    optimizers = torch.load(saved_steps(output)[-1] / "optimizer.pt", weights_only=True)
    values = [v for o in optimizers for s in o["state"].values() for v in s.values()]
    return hashes | {"optimizer": hashlib.sha256(b"".join(v.numpy().tobytes() for v in values)).hexdigest()}


@pytest.mark.slow
@pytest.mark.parametrize("processes", [1, 2])
def test_killed_at_many_moments_the_weights_are_those_of_an_uninterrupted_run(processes, prepared, tmp_path):
    assert run(processes, prepared, tmp_path / "whole") == 0
    killed = tmp_path / "killed"
    for moment, count in KILLS:
        assert run(processes, prepared, killed, moment, str(count), module="tests.training.dies") != 0
        saved = saved_steps(killed)
        assert all(len(list(save.iterdir())) == 3 for save in saved)
    assert len(saved) == 2
    assert run(processes, prepared, killed) == 0
    assert state_of(killed) == state_of(tmp_path / "whole")
    keep = ("step", "loss", "gradient_norm", "tokens", "valid_nats_per_unit")
    runs = [
        [{k: e[k] for k in keep if k in e} for e in read_metrics(folder)] for folder in (killed, tmp_path / "whole")
    ]
    assert runs[0] == runs[1]
    assert [entry["step"] for entry in read_metrics(killed)] == list(range(1, 13))
    assert not list((killed / "resume").glob(".*"))


@pytest.mark.slow
def test_terminated_a_run_saves_and_goes_on(prepared, tmp_path):
    train(settings_for(prepared, tmp_path / "whole", max_steps=300, save_every=10**6, eval_every=10**6))
    flags = {**FLAGS, "max_steps": 300, "save_every": 10**6, "eval_every": 10**6, "micro_batch_rows": 4}
    del flags["regularization.dropout"], flags["eval_dialogues"]
    call = [*command(1, "training"), "--data", str(prepared), "--output", str(tmp_path / "run")]
    call += as_flags(flags)
    process = subprocess.Popen(call, cwd=ROOT, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not read_metrics(tmp_path / "run"):
        time.sleep(0.01)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert "continue with --resume" in errors
    assert len(saved_steps(tmp_path / "run")) == 1
    subprocess.run([*call, "--resume"], cwd=ROOT, check=True, capture_output=True, timeout=300)
    assert state_of(tmp_path / "run") == state_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_signal_to_one_of_two_processes_stops_both_after_a_step(prepared, tmp_path):
    """The signal arrives after the processes have agreed to continue; the next step has to inform the other one."""
    output = tmp_path / "run"
    assert run(2, prepared, output, "asked to stop", "3", module="tests.training.dies") != 0
    assert [save.name for save in saved_steps(output)] == ["step-00000004"]
    assert run(2, prepared, output) == 0
    assert run(2, prepared, tmp_path / "whole") == 0
    assert state_of(output) == state_of(tmp_path / "whole")


def stages_for(prepared) -> dict:
    """Two stages of four steps over different mixtures."""
    first = StageSettings("broad", [str(prepared), f"{prepared}:0.5"], max_steps=4)
    second = StageSettings("narrow", max_steps=4, learning_rate=1e-3, row_tokens=64, batch_rows=4, warmup_steps=0)
    return {"stages": [first, second], "max_steps": None, "eval_every": 4, "save_every": 1}


def stop_after(monkeypatch, calls: int) -> None:
    backward, done = Objective.backward, []

    def stops(self, *args):
        if len(done) == calls:
            raise KeyboardInterrupt
        done.append(1)
        return backward(self, *args)

    monkeypatch.setattr(Objective, "backward", stops)


@pytest.fixture(scope="module")
def two_stages(prepared, tmp_path_factory):
    """An uninterrupted run of two stages."""
    output = tmp_path_factory.mktemp("stages") / "whole"
    record = train(settings_for(prepared, output, **stages_for(prepared)))
    assert (record["stage"], record["stage_step"], record["step"]) == (1, 4, 8)
    return output


@pytest.mark.parametrize("stop", [1, 5, 8])
def test_stages_go_on_where_they_were(stop, two_stages, prepared, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            train(settings_for(prepared, tmp_path / "stopped", **stages_for(prepared)))
    resume = bool(saved_steps(tmp_path / "stopped"))
    train(settings_for(prepared, tmp_path / "stopped", resume=resume, **stages_for(prepared)))
    assert state_of(tmp_path / "stopped") == state_of(two_stages)
    rates = [entry["learning_rate"] for entry in read_metrics(tmp_path / "stopped")]
    assert rates[0] < rates[2] < 3e-3  # warming up
    assert rates[4] == 1e-3


def test_a_changed_stage_is_refused(prepared, tmp_path):
    changes = stages_for(prepared)
    train(settings_for(prepared, tmp_path / "run", **changes))
    changes["stages"] = [changes["stages"][0], StageSettings("narrow", max_steps=5)]
    with pytest.raises(ResumeError, match="the stages changed"):
        train(settings_for(prepared, tmp_path / "run", resume=True, **changes))
    with pytest.raises(ResumeError, match="--clip-norm"):
        train(settings_for(prepared, tmp_path / "run", resume=True, clip_norm=0.5, **stages_for(prepared)))


def test_faults_of_stages_name_the_stage(prepared, tmp_path):
    stages = [StageSettings("broad", epochs=-1), StageSettings(regularization=Regularization(dropout=1.5))]
    with pytest.raises(SettingsError, match=r"stage broad: --epochs .*; stage 2: --regularization.dropout"):
        train(settings_for(prepared, tmp_path / "run", stages=stages))


def test_two_runs_cannot_share_a_folder(prepared, tmp_path, monkeypatch):
    seen = []

    def second(self, *args):
        with pytest.raises(ResumeError, match="Another run is writing"):
            train(settings_for(prepared, tmp_path / "run"))
        seen.append(1)
        raise KeyboardInterrupt

    monkeypatch.setattr(Objective, "backward", second)
    with pytest.raises(KeyboardInterrupt):
        train(settings_for(prepared, tmp_path / "run"))
    assert seen
    monkeypatch.undo()
    train(settings_for(prepared, tmp_path / "run", max_steps=1))  # the first one is gone


def test_a_loss_that_is_no_number_names_the_batch_and_keeps_the_last_state(prepared, tmp_path, monkeypatch):
    changes = {"eval_every": 3, "save_every": 100}
    train(settings_for(prepared, tmp_path / "whole", **changes))
    calls = []

    def fourth_is_nan(*args):
        calls.append(1)
        return float("nan") if len(calls) == 4 else clip_gradients(*args)

    with monkeypatch.context() as patch:
        patch.setattr("training.step.clip_gradients", fourth_is_nan)
        with pytest.raises(SettingsError, match=rf"at step 4: .* The batch was: {prepared.name}: \d+, "):
            train(settings_for(prepared, tmp_path / "run", **changes))
    assert load_model(tmp_path / "run").config.hidden_size == 32
    assert [save.name for save in saved_steps(tmp_path / "run")] == ["step-00000003"]
    train(settings_for(prepared, tmp_path / "run", resume=True, **changes))
    assert state_of(tmp_path / "run") == state_of(tmp_path / "whole")


@pytest.mark.slow
def test_a_full_disk_during_a_save_loses_nothing(prepared, tmp_path):
    """The file size limit of the process simulates a full disk; the optimizer's file is the largest."""
    assert run(1, prepared, tmp_path / "whole") == 0
    largest = (saved_steps(tmp_path / "whole")[-1] / "optimizer.pt").stat().st_size
    flags = as_flags(FLAGS)
    call = [*command(1, "training"), "--data", str(prepared), "--output", str(tmp_path / "run"), *flags]
    limit = (largest - 1000, resource.RLIM_INFINITY)
    script = f"import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, {limit}); "
    script += "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); from training.cli import main; "
    small = [sys.executable, "-c", script + "sys.exit(main(sys.argv[1:]))", *call[3:]]
    done = subprocess.run(small, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    last = done.stderr.strip().splitlines()[-1]
    assert done.returncode == 1
    assert last.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert saved_steps(tmp_path / "run") == []
    assert not list((tmp_path / "run" / "resume").iterdir())
    assert run(1, prepared, tmp_path / "run") == 0
    assert state_of(tmp_path / "run") == state_of(tmp_path / "whole")


EARLY = {"max_steps": 20, "eval_every": 2, "early_stopping_patience": 3, "save_every": 5}


def losses(monkeypatch, *values: float):
    """Let the validation after every second step give these values; it depends on the step alone."""
    run = Validation.run

    def validate(self, progress, training_record):
        monkeypatch.setattr(training.validation, "nats_per_unit", lambda *args: values[progress["step"] // 2 - 1])
        return run(self, progress, training_record)

    monkeypatch.setattr(Validation, "run", validate)


@pytest.mark.parametrize(
    ("values", "patience", "steps", "best"),
    [
        ((5.0, 4.0, 4.1, 4.2, 4.0, 3.0, 3.0, 3.0, 3.0, 3.0), 3, 10, 4),  # equal is no improvement
        ((5.0, 4.0, 4.1, 4.2, 3.9, 4.0, 4.0, 3.8, 3.7, 3.6), 3, 20, 20),
        ((5.0, 6.0, 4.0, 4.2, 3.9, 4.0, 4.0, 3.8, 3.7, 3.6), 1, 4, 2),
        ((5.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0, 6.0), 0, 20, 2),
    ],
)
def test_a_run_ends_after_validations_without_improvement(
    values, patience, steps, best, prepared, tmp_path, monkeypatch, capsys
):
    losses(monkeypatch, *values)
    settings = settings_for(prepared, tmp_path / "run", **{**EARLY, "early_stopping_patience": patience})
    record = train(settings)
    assert (record["step"], record["best_step"], record["stopped_by"]) == (steps, best, None)
    is_early = steps < 20
    message = f"stopped early after {steps} of 20 steps, because {patience} consecutive validations brought no"
    assert (message in capsys.readouterr().err) == is_early
    summary = f"stopped early: no improvement in {patience} consecutive validations after step {best}"
    assert (summary in summary_of(settings, record)) == is_early
    assert [save.name for save in saved_steps(tmp_path / "run")][-1] == f"step-{steps:08d}"
    assert read_metrics(tmp_path / "run")[-1]["step"] == steps


@pytest.mark.parametrize("stop", [2, 6, 7, 9, 10])
def test_killed_before_an_early_stop_the_run_ends_at_the_same_step(stop, prepared, tmp_path, monkeypatch):
    losses(monkeypatch, 5.0, 4.0, 4.1, 4.2, 4.3)
    settings = settings_for(prepared, tmp_path / "whole", **EARLY)
    train(settings)
    output = tmp_path / "stopped"
    with monkeypatch.context() as patch:
        stop_after(patch, 2 * stop)  # two micro-batches a step
        with suppress(KeyboardInterrupt):
            train(settings_for(prepared, output, **EARLY))
    for _ in range(2):  # the second time, the run has ended already
        record = train(settings_for(prepared, output, resume=True, **EARLY))
        assert (record["step"], record["best_step"], record["validations_since_best"]) == (10, 4, 3)
        assert state_of(output) == state_of(tmp_path / "whole")


def test_a_stage_that_ends_early_is_followed_by_the_next_one(prepared, tmp_path, monkeypatch):
    losses(monkeypatch, 5.0, 4.0, 4.1, 4.2, 4.3, 3.0, 3.1, 2.9, 2.8, 2.7)
    stages = {"stages": [StageSettings("broad", max_steps=20), StageSettings("narrow", max_steps=8)]}
    record = train(settings_for(prepared, tmp_path / "run", **{**EARLY, **stages, "max_steps": None}))
    assert (record["stage"], record["stage_step"], record["step"], record["best_step"]) == (1, 8, 18, 18)


def test_after_an_early_stop_more_patience_continues_the_run(prepared, tmp_path, monkeypatch):
    losses(monkeypatch, 5.0, 4.0, 4.1, 4.2, 4.3, 4.2, 3.5, 3.6, 3.7, 3.8)
    assert train(settings_for(prepared, tmp_path / "run", **EARLY))["step"] == 10
    more = {**EARLY, "early_stopping_patience": 5}
    record = train(settings_for(prepared, tmp_path / "run", resume=True, **more))
    assert (record["step"], record["best_step"]) == (20, 14)


def test_samples_and_warnings(prepared, tmp_path, monkeypatch, capsys):
    values = iter([5.0, 6.0, 7.0])
    monkeypatch.setattr("training.validation.nats_per_unit", lambda *args: next(values))
    monkeypatch.setattr("training.validation.MAX_MESSAGES", MAX_MESSAGES)
    train(settings_for(prepared, tmp_path / "run", max_steps=6, eval_every=2, save_every=6))
    errors = capsys.readouterr().err
    assert "validation rises: 7.0000 nats/unit after 5.0000 at step 2" in errors
    assert "a unigram model has" in errors
    assert "step 4: 6.000 nats/unit\n" in errors
    samples = read_log(tmp_path / "run" / "samples.jsonl")
    assert [entry["step"] for entry in samples] == [2] * MAX_MESSAGES + [4] * MAX_MESSAGES + [6] * MAX_MESSAGES
    valid = [tuple(turns[:2]) for turns in read_dialogues(prepared)]
    for entry in samples:
        assert (*entry["prompt"], entry["reference"]) in valid
    assert len({entry["prompt"][0] for entry in samples}) == MAX_MESSAGES
    assert (tmp_path / "run" / METRICS).is_file()


@pytest.mark.slow
def test_tensorboard_gets_the_metrics_and_the_samples(prepared, tmp_path):
    pytest.importorskip("tensorboard", reason="TensorBoard is an extra")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(settings_for(prepared, tmp_path / "run", max_steps=4, eval_every=2, tensorboard=True))
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    losses = [entry["loss"] for entry in read_metrics(tmp_path / "run")]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx(losses)
    assert len(events.Scalars("valid_nats_per_unit")) == 2
    samples = {entry["prompt"][-1] for entry in read_log(tmp_path / "run" / "samples.jsonl")}
    assert {f"{prompt}/text_summary" for prompt in samples} & set(events.Tags()["tensors"])


def test_the_search_for_a_micro_batch_does_not_copy_the_epoch(prepared, tmp_path, monkeypatch):
    class Rows(list):
        def __mul__(self, count):
            raise AssertionError("an epoch may have 10^5 rows, a batch 10^2")

    rows = PackedData.rows
    monkeypatch.setattr(PackedData, "rows", lambda self, epoch: Rows(rows(self, epoch)))
    record = train(settings_for(prepared, tmp_path / "run", micro_batch_rows=None, max_steps=1))
    assert record["micro_batch_rows"] == 8


def test_the_micro_batch_is_found_and_recorded(prepared, tmp_path, monkeypatch):
    backward, tried = Objective.backward, []

    def hungry(self, batch, *args):
        tried.append(len(batch["input_ids"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return backward(self, batch, *args)

    monkeypatch.setattr(Objective, "backward", hungry)
    record = train(settings_for(prepared, tmp_path / "run", micro_batch_rows=None, max_steps=2, eval_every=2))
    assert record["micro_batch_rows"] == 2
    assert tried == [8, 4, 2, *[2] * 8]
