"""One optimizer step: micro-batches, one accumulated gradient, one clip.

The loss of a step is the sum of nats over all targets of the batch, divided by their number over all processes:

    loss = (1 / N) sum_r sum_m nats(r, m),    N = targets of the whole batch

for process r and micro-batch m. Every micro-batch is divided by N / R, because DDP averages gradients over the R
processes. So the gradient depends neither on the micro-batches nor on the number of processes.
"""

from __future__ import annotations

import math
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch

from training.optim.clipping import clip_gradients
from training.optim.optimizers import set_rates
from training.optim.regularizers import Objective
from training.settings import TrainSettings
from training.stage import Stage, split_rows
from training.state.saved_state import Progress
from training.trained_model import TrainedModel


class DivergedError(Exception):
    """A step whose loss or gradient is not finite; the weights are those before the step.

    Attributes:
        loss: Loss of the step in nats/token.
        gradient_norm: Norm of its gradient.
    """

    def __init__(self, loss: float, gradient_norm: float):
        super().__init__(f"loss {loss}, gradient norm {gradient_norm}")
        self.loss, self.gradient_norm = loss, gradient_norm


@dataclass(frozen=True)
class StepResult:
    """Measurements of an optimizer step.

    Attributes:
        loss: nats/token over all processes, without the regularizers' term.
        regularization: Term that the regularizers add to the loss.
        gradient_norm: Norm of the gradient before clipping.
        clipped: Whether the gradient was clipped.
        stop_requested: Whether any process was asked to stop.
    """

    loss: float
    regularization: float
    gradient_norm: float
    clipped: bool
    stop_requested: bool


def take_step(
    trained: TrainedModel,
    stage: Stage,
    objective: Objective,
    rows: list[list[int]],
    progress: Progress,
    settings: TrainSettings,
    stop_requested: bool,
) -> StepResult:
    """Take an optimizer step over a batch; all processes call this together.

    Args:
        trained: Model, optimizers and average.
        stage: Stage of the batch.
        objective: Loss and gradients of the model.
        rows: Rows of the whole batch, over all processes.
        progress: Progress before the step.
        settings: Settings of the run.
        stop_requested: Whether this process was asked to stop.

    Raises:
        DivergedError: Loss or gradient is not finite; no weight was changed.
    """
    accelerator = trained.accelerator
    torch.manual_seed(seed_of(settings.seed, progress["step"], accelerator.process_index))
    trained.model.train()
    set_rates(trained.optimizers, stage.rate(progress["stage_step"]), stage.settings.weight_decay)
    loss, extra = add_gradients(trained, stage, objective, rows, progress["micro_batch_rows"] or 1)
    sums = torch.tensor([loss, extra, float(stop_requested)], device=accelerator.device)
    loss, extra, stop = accelerator.reduce(sums, "mean").tolist()
    norm = clip_gradients(trained.model.parameters(), settings.clip, settings.clip_norm)
    if not math.isfinite(loss + extra) or not math.isfinite(norm):
        trained.zero_gradients()
        raise DivergedError(loss, norm)
    for optimizer in trained.optimizers:
        optimizer.step()
    trained.zero_gradients()
    if trained.average is not None:
        trained.average.update(progress["step"] + 1)
    return StepResult(
        loss=loss,
        regularization=extra,
        gradient_norm=norm,
        clipped=settings.clip != "none" and norm > settings.clip_norm,
        stop_requested=stop > 0,
    )


def add_gradients(
    trained: TrainedModel, stage: Stage, objective: Objective, rows: list[list[int]], micro_batch_rows: int
) -> tuple[float, float]:
    """Run this process's micro-batches forward and backward; gradients are exchanged in the last one.

    Returns:
        This process's part of the loss and of the regularizers' term; the mean over the processes is the value for
        the batch.
    """
    accelerator = trained.accelerator
    items = stage.data.targets(rows) / accelerator.num_processes
    micro_batches = split_rows(rows, micro_batch_rows, accelerator.process_index, accelerator.num_processes)
    no_sync = partial(accelerator.no_sync, trained.model)
    losses, extras = 0.0, 0.0
    for number, micro in enumerate(micro_batches, 1):
        with nullcontext() if number == len(micro_batches) else no_sync():
            batch = {name: tensor.to(accelerator.device) for name, tensor in stage.data.tensors(micro).items()}
            loss, extra = objective.backward(batch, items, accelerator.backward, no_sync)
            losses, extras = losses + loss, extras + extra
    return losses, extras


def seed_of(seed: int, step: int, process: int) -> int:
    """Return the seed of the noise and dropout of a step in a process."""
    return int(np.random.SeedSequence((seed, step, process)).generate_state(1, np.uint64)[0] >> 1)
