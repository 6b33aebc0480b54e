"""A bot of the layers that the runtime has, and the runtime built for this machine."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from chatbot.checkpoint.export.lite import export_lite
from chatbot.checkpoint.folder import save
from chatbot.model.network import XianliaoForCausalLM
from chatbot.native.building import build_native
from chatbot.native.library import TARGETS
from tests.conftest import tiny_config

GENERATION = {
    "floor_start_tokens": 12,
    "floor_delta_tokens": 4,
    "banned_words": ["妈的", "!妈妈的", "ABC"],
    "script": "simplified",
}

METHODS = {
    "sample": {},
    "greedy": {"method": "greedy"},
    "greedy_floor": {"method": "greedy", "floor_start_tokens": 2, "floor_delta_tokens": 4},
    "floor": {"floor_start_tokens": 2, "floor_delta_tokens": 3},
    "bound": {"floor_start_tokens": 0, "floor_delta_tokens": 1, "min_reply_tokens": 0, "temperature": 3.0},
    "limit": {"max_reply_tokens": 5},
    "no_floor": {"floor_start_tokens": None, "max_reply_tokens": 30},
    "top_k": {"top_k": 20},
    "min_p": {"min_p": 0.05},
    "typical": {"typical_p": 0.8, "top_p": 1.0},
    "typical_of_one": {"typical_p": 1e-300, "top_p": 1.0},
    "all_tokens": {"top_p": 1.0, "temperature": 1.0},
    "without_eos": {"keep_eos": False, "min_reply_tokens": 8},
    "penalty": {"repetition_penalty": 1.3},
    "never_again": {"no_repeat_ngram": 2, "repeat_cost": None},
    "cost": {"no_repeat_ngram": 1, "repeat_cost": 2.0},
    "best_of_four": {"candidates": 4},
}
"""Changes of settings, one for each rule."""


QUICKLY = tuple((*kernel, "-O1") for kernel in TARGETS)
"""Flags with which the arithmetic is built in an eighth of the time; its bits are the same."""


def tiny_checkpoint(folder: Path, tokenizer, use_bias: bool = False, **generation) -> Path:
    """Write a checkpoint with random weights, large enough that its distributions are not flat."""
    torch.manual_seed(0)
    changes = {
        **{"layer_types": ["linear_elu1", "sliding_softmax"], "short_conv": 4, "output_gate": True},
        **{"positions": "rope", "sliding_window": 8, "use_bias": use_bias, "initializer_range": 0.3},
        "context_tokens": 64,
    }
    model = XianliaoForCausalLM(tiny_config(tokenizer, **changes)).eval()
    save(folder, model, tokenizer, {**GENERATION, **generation}, {"step": 0}, int8=True)
    return folder


def built_library(folder: Path, *flags: str, kernels: Sequence[Sequence[str]] = TARGETS) -> Path:
    """Return the runtime, built by this machine's compiler; arguments as for `build_native`."""
    if shutil.which("cc") is None or sys.platform != "linux":
        pytest.skip("there is no C compiler for the runtime")
    path = folder / "xianliao.so"
    build_native(path, flags, kernels)
    return path


def weights_file(folder: Path, checkpoint: Path, safety="default") -> Path:
    """Export a checkpoint."""
    path = folder / f"{checkpoint.name}.xianliao"
    export_lite(checkpoint, path, safety)
    return path
