"""A bot of the layers that the runtime has, and the runtime built for this machine."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pytest
import torch

from chatbot.checkpoint.export.lite import export_lite
from chatbot.checkpoint.folder import save
from chatbot.model.network import XianliaoForCausalLM
from chatbot.native.building import build_native
from tests.conftest import tiny_config

GENERATION = {"floor_start_tokens": 12, "floor_delta_tokens": 4, "banned_words": ["妈的", "!妈妈的", "ABC"]}


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


def built_library(folder: Path, *flags: str) -> Path:
    """Return the runtime, built by this machine's compiler."""
    if shutil.which("cc") is None or sys.platform == "win32":
        pytest.skip("there is no C compiler")
    path = folder / "xianliao.so"
    build_native(path, flags)
    return path


def weights_file(folder: Path, checkpoint: Path, safety="default") -> Path:
    """Export a checkpoint."""
    path = folder / f"{checkpoint.name}.xianliao"
    export_lite(checkpoint, path, safety)
    return path
