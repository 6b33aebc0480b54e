"""Training of a latent: its schedule, an exact resume, and runs that collapse."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from chatbot.checkpoint.folder import load_model
from tests.training.test_training import settings_for, weights_hash
from training.latent.schedule import phase_at
from training.reporting.logs import read_metrics
from training.run import Run, train
from training.settings import LatentTraining, ModelSettings, Regularization, SettingsError, StageSettings
from training.state.saved_state import saved_steps

FREE = LatentTraining(min_shuffle_cost=0.0)


@pytest.fixture(scope="module")
def base(prepared, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base") / "base"
    train(settings_for(prepared, folder, max_steps=4, eval_every=4))
    return folder


def latent_settings(prepared, base, output, kind: str = "gaussian", **changes):
    changes = {"latent": kind, "latent_size": 6, "latent_codes": 4, "latent_training": FREE, **changes}
    return settings_for(prepared, output, init=str(base), model=ModelSettings(), **changes)


def test_the_schedule_is_as_stated():
    settings = LatentTraining(
        autoencoding_share=0.1, cycles=4, final_bag_of_words=0.1, language_model_rate=0.1, word_dropout=0.25
    )
    betas = [phase_at(step, 100, settings).weights.beta for step in range(100)]
    assert betas[:10] == [0.0] * 10
    assert betas[10:20] == pytest.approx([0.1 * number for number in range(10)])  # a cycle of 20: half rising
    assert betas[20:30] == pytest.approx([1.0] * 10)
    assert betas[10:30] == pytest.approx(betas[70:90])
    assert betas[90:] == [1.0] * 10
    bags = [phase_at(step, 100, settings).weights.bag for step in (0, 9, 10, 50, 90, 99)]
    assert bags == pytest.approx([1.0, 1.0, 1.0, 0.55, 0.1, 0.1])
    assert [phase_at(step, 100, settings).language_model_rate for step in (0, 9, 10, 99)] == [0, 0, 0.1, 0.1]
    weights = phase_at(0, 100, settings).weights
    assert (weights.free_nats, weights.word_dropout) == (0.12, 0.25)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
def test_a_run_resumes_exactly_and_begins_with_the_model_as_it_is(prepared, base, tmp_path, monkeypatch, kind):
    changes = {"max_steps": 5, "eval_every": 5, "save_every": 1}
    changes["latent_training"] = replace(
        FREE, autoencoding_share=0.4, cycling_share=0.6, cycles=4, language_model_rate=0.1
    )
    train(latent_settings(prepared, base, tmp_path / "whole", kind, **changes))
    steps, real = iter(range(5)), Run._step

    def stop():
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "_step", lambda run, *args: real(run, *args) if next(steps) < 2 else stop())
    with pytest.raises(KeyboardInterrupt):
        train(latent_settings(prepared, base, tmp_path / "parts", kind, **changes))
    monkeypatch.undo()
    state = load_state(tmp_path / "parts")
    before = load_model(base).state_dict()
    assert all(torch.equal(t, before[name]) for name, t in state.items() if not name.startswith("latent."))
    assert any(t.any() for name, t in state.items() if name.startswith("latent.skips"))
    train(latent_settings(prepared, base, tmp_path / "parts", kind, resume=True, **changes))
    assert weights_hash(tmp_path / "parts") == weights_hash(tmp_path / "whole")
    after = load_model(tmp_path / "whole").state_dict()
    assert any(not torch.equal(t, after[name]) for name, t in before.items())  # the language model is trained, too
    metrics = read_metrics(tmp_path / "whole")
    assert metrics[0]["latent_beta"] == 0.0
    assert metrics[-1]["latent_shuffle_cost"] == pytest.approx(0, abs=0.5)
    assert {"latent_active_units", "latent_mutual_information", "latent_kl_00", "latent_gain_0"} <= set(metrics[-1])


def load_state(folder):
    from safetensors.torch import load_file

    return load_file(saved_steps(folder)[-1] / "model.safetensors")


def test_a_collapsed_run_says_so_and_stops(prepared, base, tmp_path):
    schedule = LatentTraining(autoencoding_share=0.2, cycling_share=0.2)
    settings = latent_settings(prepared, base, tmp_path / "run", max_steps=4, eval_every=2, latent_training=schedule)
    with pytest.raises(SettingsError, match=r"The latent has collapsed at step 2: .* the minimum is 0.05"):
        train(settings)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"init": None}, "--init is missing"),
        ({"optimizer": "muon"}, "adamw"),
        ({"compile": True}, "--compile"),
        ({"termination": "st"}, "excludes --termination st"),
        ({"stages": [StageSettings(), StageSettings()]}, "a single stage"),
        ({"regularization": Regularization(fgm=1.0)}, "no regularization but dropout"),
        ({"latent_training": LatentTraining(free_nats=-1)}, "--latent-training.free-nats"),
        ({"latent_training": LatentTraining(cycles=0)}, "--latent-training.cycles"),
        ({"latent_training": LatentTraining(autoencoding_share=0.7)}, "together"),
        ({"latent_codes": 1}, "--latent-codes must be at least 2"),
    ],
)
def test_settings_that_cannot_work_are_refused(prepared, base, tmp_path, changes, fault):
    with pytest.raises(SettingsError, match=fault):
        replace(latent_settings(prepared, base, tmp_path / "run"), **changes).check()
