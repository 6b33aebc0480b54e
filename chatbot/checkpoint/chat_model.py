"""Loading of chat models of other projects (`chatbot.model.hf_chat_model`) from folders of unknown sources.

transformers is never given the folder, only a config with the keys that are read here, and the tensors. Other keys of
config.json, and other files of the folder, can name code, packages and files for transformers to load (`auto_map`,
`quantization_config`, `attn_implementation`, `fusion_config`, `transformers_weights` and more).
"""

from __future__ import annotations

from collections.abc import Set
from math import isfinite
from pathlib import Path
from typing import Any

import torch
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, PreTrainedConfig
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
from chatbot.decoding.settings import MAX_STORED_LIMIT_TOKENS
from chatbot.errors import CheckpointError, first_line, last_line, shown
from chatbot.model.hf_chat_model import MAX_CONTEXT_TOKENS, HfChatModel
from chatbot.model.layer_types import MAXIMA
from chatbot.model.slots.states import SLOT_ATTENTION
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer

SIZES = {
    **{name: MAXIMA[name] for name in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers")},
    **dict.fromkeys(("num_attention_heads", "num_key_value_heads"), MAXIMA["num_attention_heads"]),
    **{name: MAXIMA[name] for name in ("head_dim", "max_position_embeddings")},
    **dict.fromkeys(
        ("sliding_window", "max_window_layers", "original_max_position_embeddings"), MAXIMA["max_position_embeddings"]
    ),
    "no_rope_layer_interval": MAXIMA["num_hidden_layers"],
}
"""Settings that must be positive whole numbers (layer sizes, counts, lengths), and the maximum of each."""

EPSILONS = ("rms_norm_eps", "layer_norm_eps", "initializer_range")
"""Settings that must be above 0 and at most 1."""

FACTORS = (
    *("embedding_multiplier", "logits_scaling", "residual_multiplier", "attention_multiplier", "logit_scale"),
    "query_pre_attn_scalar",
)
"""Settings that must be above 0 and at most `MAX_FACTOR`."""

MAX_FACTOR = 1e4
SWITCHES = (
    *("attention_bias", "mlp_bias", "attention_out_bias", "use_bias", "use_qk_norm", "use_sliding_window"),
    "tie_word_embeddings",
)
"""Settings that must be true or false."""

OTHERS = (
    *("hidden_act", "hidden_activation", "attention_dropout", "layer_types", "no_rope_layers"),
    *("pad_token_id", "bos_token_id", "eos_token_id"),
)
"""Other settings that are read."""

WITHOUT_EFFECT = ("use_cache", "pretraining_tp", "resid_pdrop", "embd_pdrop", "residual_dropout", "eod_token_id")
"""Settings of transformers' configs that change no reply. A folder that sets any further one is refused, because the model
would compute something else than its makers' program."""

ROPE_NUMBERS = (
    *("rope_theta", "factor", "original_max_position_embeddings", "low_freq_factor", "high_freq_factor"),
    *("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "partial_rotary_factor"),
)
PARTIAL_ROPE_TYPES = ("glm4", "phi3")
"""Types of models that rotate a part of each head."""

ROPE_TYPES = ("default", "linear", "dynamic", "yarn", "llama3")


def load_hf_chat_model(path: Path, tokenizer: DialogueTokenizer, dtype: torch.dtype = torch.float32) -> HfChatModel:
    """Load the model of a transformers folder of one of `MODEL_TYPES`, on the CPU in evaluation mode.

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
    config_class: Any = CONFIG_MAPPING[settings["model_type"]]
    model_class: Any = MODEL_FOR_CAUSAL_LM_MAPPING[config_class]
    known = config_class.__annotations__.keys() & {*SIZES, *EPSILONS, *FACTORS, *SWITCHES, *OTHERS}
    supported = {name: value for name, value in settings.items() if name in known}
    try:
        _check_values(supported)
        _check_unread(settings, config_class, known)
        config = config_class(**supported, rope_parameters=_rope_of(settings, config_class))
        _check_together(config)
    except Exception as error:  # the strict validators raise several types
        raise CheckpointError(
            f"{path / CONFIG} does not describe a model ({last_line(error)}). Copy the folder again."
        ) from None
    config.architectures = [model_class.__name__]
    config._attn_implementation = "sdpa"
    return config, model_class


def _check_values(settings: dict[str, Any]) -> None:
    """Check the types and the ranges of settings.

    Raises:
        ValueError: A setting cannot be used.
    """
    for name, most in SIZES.items():
        value = settings.get(name)
        if value is not None and (type(value) is not int or not 1 <= value <= most):
            raise ValueError(f"{name} must be a whole number between 1 and {most}, got {shown(value)}")
    for name in (*EPSILONS, *FACTORS):
        value, largest = settings.get(name, 1.0), 1 if name in EPSILONS else MAX_FACTOR
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= largest:
            raise ValueError(f"{name} must be above 0 and at most {largest:g}, got {shown(value)}")
        if name in settings and name != "query_pre_attn_scalar":  # which is a whole number
            settings[name] = float(value)
    if wrong := [name for name in SWITCHES if not isinstance(settings.get(name, False), bool | None)]:
        raise ValueError(f"{wrong[0]} must be true or false, got {shown(settings[wrong[0]])}")
    layers = settings.get("no_rope_layers") or []
    if not isinstance(layers, list) or not all(type(layer) is int and layer in (0, 1) for layer in layers):
        raise ValueError(f"no_rope_layers must be a list of 0 and 1, got {shown(layers)}")


def _check_unread(settings: dict[str, Any], config_class: Any, known: Set[str]) -> None:
    """Check that settings which are not read have their defaults.

    Raises:
        ValueError: A setting has another value.
    """
    for name in config_class.__annotations__.keys() - known - {"rope_parameters", *WITHOUT_EFFECT}:
        if (value := settings.get(name)) and name in dir(config_class) and value != getattr(config_class, name):
            raise ValueError(f"{name} = {shown(value)} is not supported")


def _rope_of(settings: dict[str, Any], config_class: Any) -> dict[str, Any]:
    """Return the settings of the rotary positions of a config.json of any version of transformers, checked.

    Raises:
        ValueError: A setting is unknown or cannot be used.
    """
    theta = getattr(config_class, "default_theta", 10000.0)
    theta = theta["global"] if isinstance(theta, dict) else theta
    base = {"rope_theta": settings.get("rope_theta", theta)}
    if (share := settings.get("partial_rotary_factor")) is not None:
        base["partial_rotary_factor"] = share
    rope, model_type = settings.get("rope_parameters") or base, config_class.model_type
    if model_type != "gemma3_text":
        return _checked_rope({**rope, **(settings.get("rope_scaling") or {})}, model_type)
    parts = rope if "full_attention" in rope else {}
    whole = parts.get("full_attention") or {**base, **(settings.get("rope_scaling") or {})}
    window = parts.get("sliding_attention") or {"rope_theta": settings.get("rope_local_base_freq", 10000.0)}
    return {"full_attention": _checked_rope(whole, model_type), "sliding_attention": _checked_rope(window, model_type)}


def _checked_rope(rope: dict[str, Any], model_type: str) -> dict[str, Any]:
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
        if name not in ROPE_NUMBERS or (name == "partial_rotary_factor" and model_type not in PARTIAL_ROPE_TYPES):
            raise ValueError(f"the setting {shown(name)} of rotary positions is not supported")
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        most = 1 if name == "partial_rotary_factor" else 1e12
        if not is_number or not 0 < value <= most or not isfinite(value):
            raise ValueError(f"{name} must be a number above 0 and at most {most:g}, got {shown(value)}")
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
    tokens = min(MAX_CONTEXT_TOKENS + MAX_STORED_LIMIT_TOKENS, config.max_position_embeddings)
    return 2 * 4 * tokens * config.num_hidden_layers * config.num_key_value_heads * _head_dim(config)
