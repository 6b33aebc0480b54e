"""Saved states: everything a run needs to continue as if it had never stopped.

    OUTPUT/resume/step-00000100/  model.safetensors  optimizer.pt  progress.json  average.safetensors (--weight-average)

A folder is written under a temporary name and renamed when it is complete; the newest two are kept. Batches are a
function of the step number and all noise is seeded by it, so weights, optimizer and step are the whole state.
progress.json holds the SHA-256 hash of every file, its own content included; a resume verifies them.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypedDict, cast

import safetensors.torch
import torch

from chatbot.checkpoint.weights import read_torch_file
from chatbot.errors import first_line
from chatbot.storage import parse_json, read_text, sync
from training.lora import trained_part
from training.optim.weight_average import WeightAverage
from training.state.run_folder import STATES, ResumeError, check_links, saved_steps
from training.state.sharding import is_sharded, load_whole_optimizers, whole_optimizer, whole_weights

KEPT_STATES = 2
WEIGHTS, OPTIMIZER, AVERAGE, PROGRESS = "model.safetensors", "optimizer.pt", "average.safetensors", "progress.json"
CHECKSUMS = "sha256"
"""Key of the hashes in progress.json."""


class Progress(TypedDict):
    """Progress of a run, as stored in progress.json and training.json.

    `step`, `tokens`, `seconds` and `clipped` (steps whose gradient was clipped) count over the run; `stage_step`,
    `best` (nats/unit of the best validation), `best_step` and `validations_since_best` over the stage. `before` is the
    validation before the first step of the stage, if the run has an ancestor.
    """

    step: int
    stage: int
    stage_step: int
    tokens: int
    seconds: float
    clipped: int
    best: float | None
    best_step: int | None
    validations_since_best: int
    before: float | None
    micro_batch_rows: int | None


def new_progress() -> Progress:
    """Return the progress of a run before its first step."""
    return Progress(
        step=0,
        stage=0,
        stage_step=0,
        tokens=0,
        seconds=0.0,
        clipped=0,
        best=None,
        best_step=None,
        validations_since_best=0,
        before=None,
        micro_batch_rows=None,
    )


def state_of(
    model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[dict[str, torch.Tensor], list[dict]]:
    """Return weights by name and optimizer states for `save_state`; all processes of a sharded model must call this."""
    if is_sharded(model):
        weights, states = whole_weights(model), [whole_optimizer(model, optimizer) for optimizer in optimizers]
    else:
        weights, states = trained_part(model).state_dict(), [optimizer.state_dict() for optimizer in optimizers]
    tied = getattr(model, "_tied_weights_keys", None) or {}  # names of tensors that are the same as others
    if tied and not getattr(model.config, "tie_word_embeddings", False):
        tied = {}
    return {name: tensor.contiguous() for name, tensor in weights.items() if name not in tied}, states


def save_state(
    output: Path,
    step: int,
    weights: dict[str, torch.Tensor],
    optimizers: list[dict],
    progress: dict[str, Any],
    average: dict[str, torch.Tensor] | None = None,
) -> None:
    """Save the state after `step` optimizer steps; a crash at any moment leaves the earlier states complete.

    Args:
        output: Folder of the run.
        step: Optimizer steps taken.
        weights: Weights by name, from `state_of`.
        optimizers: States of the optimizers, from `state_of`.
        progress: Content of progress.json.
        average: Average of the weights by name, or None.

    Raises:
        ResumeError: The files cannot be written.
    """
    folder = output / STATES
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".step-{step:08d}", folder / f"step-{step:08d}"
    remove_unfinished(output)
    temporary.mkdir()
    try:
        safetensors.torch.save_file(weights, str(temporary / WEIGHTS))
        torch.save(optimizers, temporary / OPTIMIZER)
        if average is not None:
            safetensors.torch.save_file(average, str(temporary / AVERAGE))
        content = {"step": step, **progress}
        hashes = {file.name: _file_hash(file) for file in sorted(temporary.iterdir())}
        hashes[PROGRESS] = _content_hash(content)
        text = json.dumps({**content, CHECKSUMS: hashes}, ensure_ascii=False, indent=2)
        (temporary / PROGRESS).write_text(text, encoding="utf-8")
        for file in temporary.iterdir():
            sync(file)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        # safetensors and torch raise many kinds
        raise ResumeError(
            f"Cannot save step {step} in {folder} ({first_line(error)}). Free disk space, then continue with --resume"
            f" from {describe_newest(output)}."
        ) from None
    if final.exists():
        _discard(final)
    os.rename(temporary, final)
    for old in saved_steps(output)[:-KEPT_STATES]:
        _discard(old)


def remove_unfinished(output: Path) -> None:
    """Remove incomplete states, left by a run that was killed while saving.

    Raises:
        ResumeError: A link leads out of the folder.
    """
    check_links(output)
    for unfinished in (output / STATES).glob(".step-*"):
        shutil.rmtree(unfinished, ignore_errors=True)


def describe_newest(output: Path) -> str:
    """Return the newest saved state in words."""
    saves = saved_steps(output)
    return f"step {step_of(saves[-1])}" if saves else "the start"


def step_of(save: Path) -> int:
    """Return the number of optimizer steps of a saved state."""
    return int(save.name.removeprefix("step-"))


def _discard(save: Path) -> None:
    """Remove a saved state. Its folder is renamed first, so that a half-removed state never looks complete."""
    hidden = save.with_name(f".{save.name}-old")
    os.rename(save, hidden)
    shutil.rmtree(hidden)


def load_progress(output: Path) -> tuple[Progress, dict]:
    """Return the progress and the identity in the newest saved state, after verifying the hashes of its files.

    Raises:
        ResumeError: The run has no saved state, or the newest one is damaged.
    """
    saves = saved_steps(output)
    if not saves:
        raise ResumeError(f"{output} has no saved state. Start the run without --resume.")
    newest = saves[-1]
    with _explaining(newest):
        content = parse_json(read_text(newest / PROGRESS))
        _verify(newest, content)
        progress: dict[str, Any] = {**new_progress(), "stage_step": content["step"]}
        progress |= {name: content[name] for name in progress if name in content}
        wrong = [name for name, value in progress.items() if value is not None and not isinstance(value, (int, float))]
        if wrong or not isinstance(content["identity"]["settings"], dict):
            raise ValueError(f"{', '.join(wrong) or 'identity'} in {PROGRESS} has the wrong type")
        return cast(Progress, progress), content["identity"]


def _verify(save: Path, content: dict[str, Any]) -> None:
    """Compare the files of a saved state with their hashes; states that earlier versions wrote have no hashes.

    Raises:
        ValueError: A file has changed since it was saved.
        OSError: A file is missing.
    """
    hashes = content.pop(CHECKSUMS, None)
    if hashes is None:
        return
    if not hashes.keys() <= {WEIGHTS, OPTIMIZER, AVERAGE, PROGRESS}:
        raise ValueError(f"{PROGRESS} names files that are not part of a saved state")
    for name, expected in hashes.items():
        actual = _content_hash(content) if name == PROGRESS else _file_hash(save / name)
        if actual != expected:
            raise ValueError(f"the checksum of {name} is wrong")


def _file_hash(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _content_hash(content: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def load_weights(output: Path, model: torch.nn.Module) -> None:
    """Load the weights of the newest saved state into a model that is not yet sharded.

    Raises:
        ResumeError: The file is damaged or does not fit the model.
    """
    newest = saved_steps(output)[-1]
    with _explaining(newest):
        safetensors.torch.load_model(trained_part(model), str(newest / WEIGHTS))


def load_optimizers(output: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Load the optimizer states of the newest saved state.

    Raises:
        ResumeError: The file is damaged or does not fit the optimizers.
    """
    newest = saved_steps(output)[-1]
    with _explaining(newest):
        states = read_torch_file(newest / OPTIMIZER)
        states = [states] if isinstance(states, dict) else states  # versions with a single optimizer saved a dict
        if is_sharded(model):
            load_whole_optimizers(model, optimizers, states)
            return
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def load_average(output: Path, average: WeightAverage) -> None:
    """Load the average of the newest saved state into an average of the same model.

    Raises:
        ResumeError: The file is missing, damaged or does not fit the model.
    """
    newest = saved_steps(output)[-1]
    with _explaining(newest):
        average.load(safetensors.torch.load_file(str(newest / AVERAGE)))


@contextmanager
def _explaining(save: Path) -> Iterator[None]:
    """Turn any exception into a ResumeError that says what to do; safetensors, torch and pickle raise many kinds."""
    try:
        yield
    except Exception as error:
        before = [state for state in saved_steps(save.parents[1]) if state < save]
        raise ResumeError(
            f"Cannot read the saved state {save} ({first_line(error)}). Remove that folder; --resume then continues from"
            f" {f'step {step_of(before[-1])}' if before else 'the start'}."
        ) from None
