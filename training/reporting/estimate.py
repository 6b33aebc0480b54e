"""Estimate of a run before it starts: parameters, tokens, memory and minutes, from steps measured on this machine."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from accelerate import Accelerator

from chatbot.model.device import pick_device
from chatbot.model.scoring import score_turns
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.turn_store import parse_source
from training.optim.memory import keep_freed_memory
from training.optim.regularizers import Objective
from training.reporting.throughput import Duration, memory_gigabytes, timed
from training.settings import TrainSettings
from training.stage import Stage
from training.state.saved_state import new_progress
from training.step import add_gradients, take_step
from training.trained_model import TrainedModel

SCORED_DIALOGUES = 8
"""Number of validation dialogues that are scored to estimate the time of a validation."""


class Estimate(NamedTuple):
    """Lines with the size and the time of a run, and its expected duration."""

    lines: list[str]
    duration: Duration


ObjectiveOf = Callable[[TrainedModel, Stage], Objective]
"""Function that returns the objective of a stage."""


def _usual_objective(trained: TrainedModel, stage: Stage) -> Objective:
    return Objective(trained.model, trained.inner, stage.settings.regularization)


def estimate(settings: TrainSettings, objective_of: ObjectiveOf = _usual_objective) -> Estimate:
    """Estimate the size and the time of a run; no file is written.

    Every stage runs three micro-batches: one to warm up, one without and one with an optimizer step. A step
    of the run is extrapolated from them, so another load on the machine changes the figure; the processor time of the
    same steps says how long the run would take without that load.

    Args:
        settings: Settings of the run, checked.
        objective_of: Objective of the steps that are measured.

    Raises:
        SettingsError, FileError, CheckpointError: An error that the user can correct.
    """
    pick_device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(min(settings.threads, 4 * (os.cpu_count() or 1)))
    keep_freed_memory()
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    tokenizer = DialogueTokenizer.load(parse_source(settings.of_stage(0).data[0]).folder)
    trained = TrainedModel(settings, tokenizer, accelerator, Path(settings.output), resumed=False)
    parameters = list(trained.inner.parameters())
    learnt = sum(parameter.numel() for parameter in parameters if parameter.requires_grad)
    lines = [f"model: {sum(map(torch.numel, parameters)) / 1e6:.2f}M parameters, {learnt / 1e6:.2f}M of them trained"]
    backward = trained.inner.config.direction == "backward"
    total, durations = Duration(), []
    for number in range(max(1, len(settings.stages))):
        stage = Stage(settings, number, tokenizer, trained.layout, backward)
        step, validation = _time_per_step(trained, stage, objective_of), _time_per_validation(trained, stage)
        validations = math.ceil(stage.steps / settings.eval_every) + (settings.init is not None)
        total += step * stage.steps + validation * validations
        rows = stage.data.rows(0)
        steps_per_epoch = math.ceil(len(rows) / stage.settings.batch_rows)
        tokens = round(stage.data.tokens(rows) * stage.steps / steps_per_epoch)
        lines.append(
            f"{stage.name}: {stage.steps} steps, {tokens} tokens, {stage.data.tokens(rows)} tokens per epoch,"
            f" {len(stage.valid_dialogues)} validation dialogues"
        )
        durations.append(
            f"{stage.steps} steps of {step.wall:.2f} s and {validations} validations of {validation.wall:.1f} s"
        )
    lines.append(f"memory: about {memory_gigabytes(accelerator.device):.1f} GB")
    lines.append(f"time: about {minutes(total.wall)} ({'; '.join(durations)})")
    if total.is_slowed_down and accelerator.device.type == "cpu":
        lines.append(f"the machine is busy: about {minutes(total.processor)} on a free one")
    if settings.early_stopping_patience:
        lines.append(
            f"early stopping: the run ends after {settings.early_stopping_patience} consecutive validations without"
            " improvement, so it may take less time"
        )
    lines.append(
        f"estimated from steps measured now ({accelerator.device}, {torch.get_num_threads()} threads); other work on this"
        " machine makes the run slower"
    )
    return Estimate(lines, total)


def _time_per_step(trained: TrainedModel, stage: Stage, objective_of: ObjectiveOf) -> Duration:
    """Measure a micro-batch and an optimizer step, and return the estimated duration of a whole step."""
    settings = stage.settings
    micro = min(settings.micro_batch_rows or 1, settings.batch_rows)
    rows = stage.data.rows(0)[:micro]
    objective = objective_of(trained, stage)
    progress = new_progress()
    progress["micro_batch_rows"] = micro
    try:
        frozen = replace(
            stage.settings, learning_rate=1e-12
        )  # nothing is saved, but later stages measure the same model
        take_step(trained, stage, objective, rows, progress, frozen, False)
        gradient = timed(partial(add_gradients, trained, stage, objective, rows, micro))
        whole = timed(partial(take_step, trained, stage, objective, rows, progress, frozen, False))
        update = Duration(max(0.0, whole.wall - gradient.wall), max(0.0, whole.processor - gradient.processor))
    finally:
        objective.close()
        trained.zero_gradients()
    per_step = min(settings.batch_rows, len(stage.data.rows(0))) / len(rows)
    return gradient * per_step + update


def _time_per_validation(trained: TrainedModel, stage: Stage) -> Duration:
    """Score a few validation dialogues, and return the estimated duration for all of them."""
    some = stage.valid_dialogues[:SCORED_DIALOGUES]
    if not some:
        return Duration()
    return timed(partial(score_turns, trained.inner, trained.layout, some)) * (len(stage.valid_dialogues) / len(some))


def minutes(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
