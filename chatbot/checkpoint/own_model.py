"""Loading of models of this project, from folders of unknown sources."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers.utils.logging import disable_progress_bar

from chatbot.checkpoint.weights import (
    CONFIG,
    MAX_WIDTH_RATIO,
    WEIGHTS,
    check_fit,
    check_state_size,
    loading_problems,
    planned,
    read_tensors,
    stored_shapes,
    weight_files,
)
from chatbot.errors import CheckpointError, first_line, last_line, shown
from chatbot.model.config import XianliaoConfig
from chatbot.model.int8 import INT8_SCALE_SUFFIX, dequantize
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json


def load_config(path: Path) -> XianliaoConfig:
    """Read config.json of a checkpoint folder; keys that are not settings of the model are ignored.

    Raises:
        CheckpointError: The file is damaged or describes another type of model.
    """
    settings = read_json(path / CONFIG)
    if settings.get("model_type") != XianliaoConfig.model_type:
        raise CheckpointError(
            f"{path} holds a model of type {shown(settings.get('model_type'))}. Give a checkpoint made by xianliao-train."
        )
    known = XianliaoConfig.__annotations__
    try:
        config = XianliaoConfig(**{name: value for name, value in settings.items() if name in known})
        widest = max(config.intermediate_size, config.num_attention_heads * config.head_dim)
        if widest > MAX_WIDTH_RATIO * config.hidden_size:
            raise ValueError(f"a width of {widest} is too large for a `hidden_size` of {config.hidden_size}")
    except Exception as error:  # the strict validators raise several types
        reason = last_line(error)
        raise CheckpointError(f"{path / CONFIG} does not describe a model ({reason}). Copy it again.") from None
    return config


def checked_config(path: Path) -> XianliaoConfig:
    """Read config.json of a checkpoint folder and check that the stored tensors fit it.

    Raises:
        CheckpointError: config.json or the weights are damaged or do not fit together.
    """
    config = load_config(path)
    files = weight_files(path)
    stored = {name: shape for name, shape in stored_shapes(files).items() if not name.endswith(INT8_SCALE_SUFFIX)}
    plan = planned(lambda: XianliaoForCausalLM(config), path)
    check_fit(plan, stored, path)
    check_state_size(state_bytes(config), plan, path)
    return config


def load_own_model(path: Path, dtype: torch.dtype) -> XianliaoForCausalLM:
    """Load a model of this project.

    Raises:
        CheckpointError: config.json or the weights are damaged or do not fit together.
    """
    config = checked_config(path)
    disable_progress_bar()  # weights of this size load in no time
    tensors = read_tensors(weight_files(path))
    try:
        if config.weight_storage == "int8":
            tensors = dequantize(tensors)
            config.weight_storage = "float"
        model, loading_info = XianliaoForCausalLM.from_pretrained(
            None, config=config, state_dict=tensors, dtype=dtype, attn_implementation="eager", output_loading_info=True
        )
    except Exception as error:  # transformers and torch raise many types
        raise CheckpointError(
            f"{path / WEIGHTS} cannot be read ({first_line(error)}). Copy or train the checkpoint again."
        ) from None
    wrong = loading_problems(loading_info)
    if wrong:
        raise CheckpointError(
            f"{path / WEIGHTS} does not fit {CONFIG} ({', '.join(wrong)}). Copy or train the checkpoint again."
        )
    return model


def state_bytes(config: XianliaoConfig) -> int:
    """Return the approximate size, in bytes, of the fp32 state of a dialogue of maximum length."""
    heads, width, tokens = config.num_attention_heads, config.head_dim, min(config.context_tokens, 1 << 12)
    taylor = 1 + config.taylor_key_dim + config.taylor_key_dim**2
    sizes = {
        "softmax": 2 * tokens * width,
        "sliding_softmax": 2 * config.sliding_window * width,
        "linear_taylor2": (taylor + 1) * width,
    }
    in_fixed_size = width * (width + 1)
    layers = config.layer_types or []
    per_head = sum(
        sizes.get(kind, 2 * tokens * width if kind.startswith("synthesizer") else in_fixed_size) for kind in layers
    )
    return 4 * heads * per_head
