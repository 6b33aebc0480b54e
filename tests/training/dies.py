"""xianliao-train, killed or stopped at a chosen moment: python -m tests.training.dies MOMENT COUNT FLAGS…

The process kills itself with SIGKILL when MOMENT occurs for the COUNT-th time; `never` lets it finish. With several
processes the first one dies, and the launcher ends the others.
"""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import torch

import chatbot.checkpoint.folder
import training.state.saved_state
import training.step
import training.validation
from training.cli import main


def die(*args, **kwargs):
    os.kill(os.getpid(), signal.SIGKILL)


def half_a_file(original, state, path):
    """Write the file, cut it in half and die."""
    original(state, path)
    size = Path(path).stat().st_size
    os.truncate(path, size // 2)
    die()


def renamed(original, source, target):
    original(source, target)
    die()


def told_to_stop(original, *args):
    """Receive SIGTERM after the processes have agreed to continue."""
    os.kill(os.getpid(), signal.SIGTERM)
    return original(*args)


MOMENTS = {  # module, function, replacement
    "in a step": (training.step, "clip_gradients", die),
    "asked to stop": (training.step, "clip_gradients", told_to_stop),
    "half of the optimizer saved": (torch, "save", half_a_file),
    "before a save is complete": (training.state.saved_state.os, "rename", die),
    "after a save is complete": (training.state.saved_state.os, "rename", renamed),
    "in a validation": (training.validation, "score_turns", die),
    "in the middle of a checkpoint": (chatbot.checkpoint.folder.safetensors.torch, "save_file", die),
}


def arm(moment: str, wanted: int) -> None:
    module, name, action = MOMENTS[moment]
    original, calls = getattr(module, name), []

    def counted(*args, **kwargs):
        calls.append(1)
        if len(calls) < wanted or (len(calls) > wanted and action is told_to_stop):
            return original(*args, **kwargs)
        return action(original, *args, **kwargs) if action is not die else die()

    setattr(module, name, counted)


if __name__ == "__main__":
    moment, count, *flags = sys.argv[1:]
    if moment != "never" and os.environ.get("RANK", "0") == "0":
        arm(moment, int(count))
    sys.exit(main(flags))
