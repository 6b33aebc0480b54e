"""Saving a run so that it goes on as if it had never stopped.

    OUTPUT/resume/step-00000100/   model.safetensors  optimizer.pt  progress.json  average.safetensors (--weight_average)

A folder is written under a temporary name and renamed when complete; the newest two are kept. Batches are a function of
the step number and randomness is seeded by it, so weights, optimizer and step are all there is to remember.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import safetensors.torch
import torch

from chatbot.errors import XianliaoError, first_line
from chatbot.storage import sync
from training.lora import trained_part
from training.optim.weight_average import WeightAverage
from training.state.sharding import is_sharded, spread_optimizers, whole_optimizer, whole_weights

KEPT = 2
FOLDER = "resume"
AVERAGE = "average.safetensors"


class ResumeError(XianliaoError):
    """A run that cannot be continued."""


def saved_steps(output: Path) -> list[Path]:
    """Complete saves of a run, oldest first."""
    return sorted(path for path in (output / FOLDER).glob("step-*") if path.is_dir())


def state_of(model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> tuple[dict, list[dict]]:
    """What a save holds of a model and its optimizers; all processes of a sharded one have to ask together."""
    if is_sharded(model):
        weights, states = whole_weights(model), [whole_optimizer(model, optimizer) for optimizer in optimizers]
    else:
        weights, states = trained_part(model).state_dict(), [optimizer.state_dict() for optimizer in optimizers]
    tied = getattr(model, "_tied_weights_keys", None) or {}  # names that stand for others
    if tied and not model.config.tie_word_embeddings:
        tied = {}
    return {name: tensor.contiguous() for name, tensor in weights.items() if name not in tied}, states


def save_state(
    output: Path, step: int, weights: dict, optimizers: list[dict], progress: dict, average: dict | None = None
) -> None:
    """Saves after `step` optimizer steps; a crash at any moment leaves the earlier saves complete.

    Args:
        output: Folder of the run.
        step: How far it is.
        weights: From `state_of`, as `optimizers` is.
        optimizers: One state for each.
        progress: What else is to be remembered.
        average: Of the weights, by name, where a run has one.

    Raises:
        ResumeError: The files cannot be written.
    """
    folder = output / FOLDER
    folder.mkdir(parents=True, exist_ok=True)
    temporary, final = folder / f".step-{step:08d}", folder / f"step-{step:08d}"
    remove_unfinished(output)
    temporary.mkdir()
    try:
        safetensors.torch.save_file(weights, str(temporary / "model.safetensors"))
        torch.save(optimizers, temporary / "optimizer.pt")
        if average is not None:
            safetensors.torch.save_file(average, str(temporary / AVERAGE))
        text = json.dumps({"step": step, **progress}, ensure_ascii=False, indent=2)
        (temporary / "progress.json").write_text(text, encoding="utf-8")
        for file in temporary.iterdir():
            sync(file)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if not isinstance(error, Exception):
            raise
        # safetensors and torch raise kinds of their own
        raise ResumeError(
            f"Step {step} could not be saved in {folder} ({first_line(error)}); make room there, then --resume goes on"
            f" from {describe_newest(output)}."
        ) from None
    if final.exists():
        _discard(final)
    os.rename(temporary, final)
    for old in saved_steps(output)[:-KEPT]:
        _discard(old)


def remove_unfinished(output: Path) -> None:
    """Removes what a run left that was killed while it saved."""
    for left in (output / FOLDER).glob(".step-*"):
        shutil.rmtree(left, ignore_errors=True)


def describe_newest(output: Path) -> str:
    """The newest save, in words."""
    saves = saved_steps(output)
    return f"step {int(saves[-1].name.removeprefix('step-'))}" if saves else "the start"


def _discard(save: Path) -> None:
    """Removes a save; it never looks complete when it is not."""
    hidden = save.with_name(f".{save.name}-old")
    os.rename(save, hidden)
    shutil.rmtree(hidden)


def load_progress(output: Path, defaults: dict) -> dict:
    """progress.json of the newest save, with `identity` and every name in `defaults`.

    Raises:
        ResumeError: There is none, or it is damaged.
    """
    saves = saved_steps(output)
    if not saves:
        raise ResumeError(f"{output} holds no saved state to continue; leave --resume out and start in a new --output.")
    path = saves[-1] / "progress.json"
    try:
        progress = json.loads(path.read_text(encoding="utf-8"))
        at_least = {"step": progress["step"], "stage_step": progress["step"], "identity": progress["identity"]}
        return {**defaults, **at_least, **{name: progress[name] for name in defaults if name in progress}}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ResumeError(
            f"{path} cannot be read ({first_line(error)}); remove {saves[-1]} to go back to the save before."
        ) from None


def load_weights(output: Path, model: torch.nn.Module) -> None:
    """Puts the weights of the newest save into a model that is not yet spread over processes.

    Raises:
        ResumeError: The file is damaged or does not fit.
    """
    newest = saved_steps(output)[-1]
    with explained(newest):
        safetensors.torch.load_model(trained_part(model), str(newest / "model.safetensors"))


def load_optimizers(output: Path, model: torch.nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Puts the optimizer states of the newest save into optimizers, ready to step.

    Raises:
        ResumeError: The file is damaged or does not fit.
    """
    newest = saved_steps(output)[-1]
    with explained(newest):
        states = torch.load(newest / "optimizer.pt", weights_only=True, map_location="cpu")
        states = [states] if isinstance(states, dict) else states  # of a run before there could be two
        if is_sharded(model):
            spread_optimizers(model, optimizers, states)
            return
        for optimizer, state in zip(optimizers, states, strict=True):
            optimizer.load_state_dict(state)


def load_average(output: Path, average: WeightAverage) -> None:
    """Puts the average of the newest save into one of the same model.

    Raises:
        ResumeError: The file is missing, damaged or does not fit.
    """
    newest = saved_steps(output)[-1]
    with explained(newest):
        average.load(safetensors.torch.load_file(str(newest / AVERAGE)))


@contextmanager
def explained(save: Path) -> Iterator[None]:
    """Says what to do where a save cannot be read; safetensors, torch and pickle raise many kinds of errors."""
    try:
        yield
    except Exception as error:
        raise ResumeError(
            f"{save} cannot be read ({first_line(error)}); remove it to go back to the save before."
        ) from None
