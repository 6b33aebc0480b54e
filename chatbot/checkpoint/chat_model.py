"""Loading of chat models of other projects (`chatbot.model.hf_chat_model`) from folders of unknown sources.

transformers is never given the folder, only a config with the keys that are read here, and the tensors. Other keys of
config.json, and other files of the folder, can name code, packages and files for transformers to load (`auto_map`,
`quantization_config`, `attn_implementation`, `fusion_config`, `transformers_weights` and more).
"""

from __future__ import annotations

from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)
from transformers.utils.logging import disable_progress_bar

from chatbot.checkpoint.hub import reference_to
from chatbot.checkpoint.weights import (
    CONFIG,
    MAX_WIDTH_RATIO,
    check_fit,
    check_state_size,
    loading_problems,
    planned,
    read_tensors,
    stored_shapes,
    weight_files,
)
from chatbot.errors import CheckpointError, first_line, last_line, shown
from chatbot.model.config import MAXIMA
from chatbot.model.hf_chat_model import MAX_CONTEXT_TOKENS, HfChatModel
from chatbot.model.slots.states import SLOT_ATTENTION
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer

CLASSES: dict[str, tuple[Any, Any]] = {
    "llama": (LlamaConfig, LlamaForCausalLM),
    "mistral": (MistralConfig, MistralForCausalLM),
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
}
"""Class of the config and of the model for each of `chatbot.model.hf_chat_model.MODEL_TYPES`."""

SIZES = {
    **{name: MAXIMA[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), MAXIMA["num_attention_heads"]),
    **{name: MAXIMA[name] for name in ("head_dim", "max_position_embeddings")},
    **{"sliding_window": MAXIMA["max_position_embeddings"], "max_window_layers": MAXIMA["max_position_embeddings"]},
}
"""Settings that must be positive whole numbers (layer sizes, counts, lengths), and the maximum of each."""

OTHERS = (
    *("hidden_act", "rms_norm_eps", "initializer_range", "attention_bias", "mlp_bias", "attention_dropout"),
    *("tie_word_embeddings", "use_sliding_window", "layer_types", "pad_token_id", "bos_token_id", "eos_token_id"),
)
"""Other settings that are read."""

ROPE_NUMBERS = (
    *("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim"),
)
ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def load_hf_chat_model(path: Path, tokenizer: DialogueTokenizer, dtype: torch.dtype = torch.float32) -> HfChatModel:
    """Load the model of a transformers folder of one of `CLASSES`, on the CPU in evaluation mode.

    Args:
        path: The folder.
        tokenizer: Tokenizer of the folder, or of an adapter to it.
        dtype: Dtype of the weights.

    Raises:
        CheckpointError: A file is missing, damaged or does not fit the others.
        DialogueError: The tokenizer has no chat template.
    """
    disable_progress_bar()
    settings = read_json(path / CONFIG)
    if settings.get("quantization_config") is not None:
        raise CheckpointError(
            f"The weights in {path} are quantized, which is not supported. Give the original weights."
        )
    config, model_class = read_config(settings, path)
    files = weight_files(path)
    plan = planned(lambda: model_class(config), path)
    check_fit(plan, stored_shapes(files), path)
    check_state_size(_state_bytes(config), plan, path)
    try:
        network, loading_info = model_class.from_pretrained(
            None,
            config=config,
            state_dict=read_tensors(files),
            dtype=dtype,
            attn_implementation=SLOT_ATTENTION,
            output_loading_info=True,
        )
    except CheckpointError:
        raise
    except Exception as error:  # transformers and torch raise many kinds
        raise CheckpointError(f"Cannot read the model in {path} ({first_line(error)}). Copy it again.") from None
    problems = loading_problems(loading_info)
    if problems:
        raise CheckpointError(
            f"The weights in {path} do not fit its config.json ({', '.join(problems)}). Copy the folder again."
        )
    network.name_or_path = reference_to(path)  # peft writes it into adapters
    return HfChatModel(network, tokenizer, path).eval()


def read_config(settings: dict[str, Any], path: Path) -> tuple[PreTrainedConfig, Any]:
    """Return transformers' config with the settings that are read, and the class of the model.

    Args:
        settings: Content of config.json.
        path: The folder, for messages.

    Raises:
        CheckpointError: A setting cannot be used.
    """
    config_class, model_class = CLASSES[settings["model_type"]]
    known = config_class.__annotations__.keys() & {*SIZES, *OTHERS}
    supported = {name: value for name, value in settings.items() if name in known}
    try:
        _check_sizes(supported)
        rope = settings.get("rope_parameters") or {"rope_theta": settings.get("rope_theta", 10000.0)}
        rope = {**rope, **(settings.get("rope_scaling") or {})}
        config = config_class(**supported, rope_parameters=_checked_rope(rope))
        _check_together(config)
    except Exception as error:  # the strict validators raise several types
        raise CheckpointError(
            f"{path / CONFIG} does not describe a model ({last_line(error)}). Copy the folder again."
        ) from None
    config.architectures = [model_class.__name__]
    config._attn_implementation = "sdpa"
    return config, model_class


def _check_sizes(settings: dict[str, Any]) -> None:
    """Check the types and the ranges of settings.

    Raises:
        ValueError: A setting cannot be used.
    """
    for name, most in SIZES.items():
        value = settings.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise ValueError(f"{name} must be a whole number between 1 and {most}, got {shown(value)}")
    for name in ("rms_norm_eps", "initializer_range"):
        value = settings.get(name, 1.0)
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 1:
            raise ValueError(f"{name} must be above 0 and at most 1, got {shown(value)}")
        if name in settings:
            settings[name] = float(value)


def _checked_rope(rope: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of the rotary positions, in the form of the present transformers.

    Raises:
        ValueError: A setting is unknown or cannot be used.
    """
    rope = dict(rope)
    kind = rope.pop("type", None)
    rope.setdefault("rope_type", kind or "default")
    if rope["rope_type"] not in ROPE_TYPES:
        raise ValueError(f"rope_type must be one of {', '.join(ROPE_TYPES)}, got {shown(rope['rope_type'])}")
    for name, value in rope.items():
        if name in ("rope_type", "truncate") or (value is None and name in ROPE_NUMBERS):
            continue
        if name not in ROPE_NUMBERS:
            raise ValueError(f"the setting {shown(name)} of rotary positions is not supported")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= 1e12 or not isfinite(value):
            raise ValueError(f"{name} must be a number above 0, got {shown(value)}")
    return rope


def _check_together(config: Any) -> None:
    """Check settings that depend on each other.

    Raises:
        ValueError: Two settings do not fit together.
    """
    heads, groups = config.num_attention_heads, config.num_key_value_heads
    width = _head_dim(config)
    if heads % groups or width % 2 or width < 2:
        raise ValueError(f"{heads} heads of width {width} cannot share {groups} keys, or the width is odd")
    widest = max(config.intermediate_size, heads * width)
    if widest > MAX_WIDTH_RATIO * config.hidden_size:
        raise ValueError(f"a width of {widest} is too large for a hidden_size of {config.hidden_size}")
    kinds = getattr(config, "layer_types", None) or []
    if not set(kinds) <= {"full_attention", "sliding_attention"}:
        raise ValueError(f"layer_types has other layers than full_attention and sliding_attention: {shown(kinds)}")
    for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
        ids = getattr(config, name)
        for index in ids if isinstance(ids, list) else [ids]:
            if index is not None and (type(index) is not int or not 0 <= index < config.vocab_size):
                raise ValueError(f"{name} must be below vocab_size, got {shown(index)}")


def _head_dim(config: Any) -> int:
    return getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads


def _state_bytes(config: Any) -> int:
    """Return the size, in bytes, of the fp32 keys and values of a dialogue of maximum length."""
    tokens = min(2 * MAX_CONTEXT_TOKENS, config.max_position_embeddings)
    return 2 * 4 * tokens * config.num_hidden_layers * config.num_key_value_heads * _head_dim(config)
