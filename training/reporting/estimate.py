"""Estimate of a run before it starts: parameters, tokens, memory and minutes, from steps measured on this machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import Accelerator

from chatbot.model.device import pick_device
from chatbot.model.scoring import score_turns
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.turn_store import parse_source
from training.optim.memory import keep_freed_memory
from training.optim.regularizers import Objective
from training.reporting.throughput import memory_gigabytes
from training.settings import TrainSettings
from training.stage import Stage
from training.state.saved_state import new_progress
from training.step import add_gradients, take_step
from training.trained_model import TrainedModel

SCORED_DIALOGUES = 8
"""Number of validation dialogues that are scored to estimate the time of a validation."""


ObjectiveOf = Callable[[TrainedModel, Stage], Objective]
"""Function that returns the objective of a stage."""


def _usual_objective(trained: TrainedModel, stage: Stage) -> Objective:
    return Objective(trained.model, trained.inner, stage.settings.regularization)


def estimate(settings: TrainSettings, objective_of: ObjectiveOf = _usual_objective) -> tuple[list[str], float]:
    """Return lines with the size and the expected time of a run, and its expected seconds; no file is written.

    Every stage runs three micro-batches: one to warm up, one without and one with an optimizer step. A step
    of the run is extrapolated from them, so another load on the machine changes the figure.

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
    seconds, durations = 0.0, []
    for number in range(max(1, len(settings.stages))):
        stage = Stage(settings, number, tokenizer, trained.layout, backward)
        step, validation = _seconds_per_step(trained, stage, objective_of), _seconds_per_validation(trained, stage)
        validations = math.ceil(stage.steps / settings.eval_every) + (settings.init is not None)
        seconds += stage.steps * step + validations * validation
        rows = stage.data.rows(0)
        steps_per_epoch = math.ceil(len(rows) / stage.settings.batch_rows)
        tokens = round(stage.data.tokens(rows) * stage.steps / steps_per_epoch)
        lines.append(
            f"{stage.name}: {stage.steps} steps, {tokens} tokens, {stage.data.tokens(rows)} tokens per epoch,"
            f" {len(stage.valid_dialogues)} validation dialogues"
        )
        durations.append(f"{stage.steps} steps of {step:.2f} s and {validations} validations of {validation:.1f} s")
    lines.append(f"memory: about {memory_gigabytes(accelerator.device):.1f} GB")
    lines.append(f"time: about {minutes(seconds)} ({'; '.join(durations)})")
    lines.append(
        f"estimated from steps measured now ({accelerator.device}, {torch.get_num_threads()} threads); other work on this"
        " machine makes the run slower"
    )
    return lines, seconds


def _seconds_per_step(trained: TrainedModel, stage: Stage, objective_of: ObjectiveOf) -> float:
    """Measure a micro-batch and an optimizer step, and return the estimated seconds of a whole step."""
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
        started = time.perf_counter()
        add_gradients(trained, stage, objective, rows, micro)
        gradient = time.perf_counter() - started
        started = time.perf_counter()
        take_step(trained, stage, objective, rows, progress, frozen, False)
        update = max(0.0, time.perf_counter() - started - gradient)
    finally:
        objective.close()
        trained.zero_gradients()
    per_step = min(settings.batch_rows, len(stage.data.rows(0))) / len(rows)
    return per_step * gradient + update


def _seconds_per_validation(trained: TrainedModel, stage: Stage) -> float:
    """Score a few validation dialogues, and return the estimated seconds for all of them."""
    some = stage.valid_dialogues[:SCORED_DIALOGUES]
    if not some:
        return 0.0
    started = time.perf_counter()
    score_turns(trained.inner, trained.layout, some)
    return (time.perf_counter() - started) * len(stage.valid_dialogues) / len(some)


def minutes(seconds: float) -> str:
    """Return a duration in words."""
    if seconds < 90:
        return f"{seconds:.0f} seconds"
    return f"{seconds / 60:.0f} minutes" if seconds < 5400 else f"{seconds / 3600:.1f} hours"
