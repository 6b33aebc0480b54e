"""LoRA adapters on a chat model of another project (`chatbot.model.hf_chat_model`), through peft.

    adapter_config.json (names the base model's folder)  adapter_model.safetensors

These are peft's own files, which other programs can read. For serving, the adapter is merged into the weights.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import safetensors.torch
import torch

from chatbot.checkpoint.hub import find_cached, is_hub_name, name_of, reference_to
from chatbot.checkpoint.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from chatbot.errors import CheckpointError, first_line, shown
from chatbot.model.hf_chat_model import HfChatModel
from chatbot.storage import read_header, read_json

TARGETS = "all-linear"
"""peft's name for every linear layer except the output head."""


def import_peft() -> ModuleType:
    """Return the package peft.

    Raises:
        CheckpointError: peft is not installed.
    """
    try:
        import peft
    except ImportError:
        raise CheckpointError("LoRA needs the package peft. Install it: pip install peft") from None
    return peft


def base_of(folder: Path) -> Path:
    """Return the base model's folder of an adapter, from its adapter_config.json.

    Raises:
        CheckpointError: adapter_config.json is damaged or not a LoRA, or the base model is not on this machine: it is
            not downloaded, because an adapter could name any model.
    """
    path = folder / ADAPTER_CONFIG
    content = read_json(path)
    kind, base = content.get("peft_type"), content.get("base_model_name_or_path")
    if kind != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of kind {shown(kind)}. Only LoRA adapters can be read.")
    if not isinstance(base, str) or not base or "\0" in base or not (Path(base).is_dir() or (folder / base).is_dir()):
        name = f"{base}@{content.get('revision') or 'main'}"
        if isinstance(base, str) and is_hub_name(name):
            if (cached := find_cached(*name.split("@"))) is None:
                raise CheckpointError(
                    f"The adapter {folder} needs {name}, which is not here. Download it: xianliao-chat --checkpoint {name}"
                )
            return cached
        raise CheckpointError(
            f"Cannot find the base model {shown(base)} of the adapter {folder}. Restore its folder, or write its new path as"
            f" base_model_name_or_path into {path}."
        )
    return Path(base) if Path(base).is_dir() else folder / base


def attach(model: HfChatModel, rank: int, alpha: float) -> None:
    """Freeze a model and add new adapters to its linear layers; they have no effect before training."""
    peft = import_peft()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=TARGETS)
    _name_base(config, model.source)
    model.network, model.has_adapter = peft.get_peft_model(model.network, config), True


def _name_base(config: Any, source: Path) -> None:
    """Write the base model into peft's config: its folder, or its name and commit on the hub."""
    config.base_model_name_or_path = reference_to(source)
    if config.base_model_name_or_path == name_of(source):
        config.revision = source.name


LORA_KEYS = (
    *("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "task_type", "fan_in_fan_out"),
    *("use_rslora", "use_dora", "rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern"),
)
"""Keys of adapter_config.json that are read. The other keys name modules that peft would import, or matter only in
training."""


MAX_RANK, MAX_ALPHA, MAX_NAMES = 4_096, 10**6, 256
SWITCHES = ("fan_in_fan_out", "use_rslora", "use_dora")
_NAME = re.compile(r"[\w.]{1,200}", re.ASCII)


def _check_settings(settings: dict[str, Any], stored: Mapping[str, tuple[int, ...]]) -> None:
    """Check the settings of an adapter, because peft uses module names as regular expressions and ranks as sizes of
    tensors.

    Args:
        settings: Values of `LORA_KEYS`, without None.
        stored: Shapes of the tensors of the adapter.

    Raises:
        ValueError, TypeError: A setting cannot be used.
    """
    for key in ("target_modules", "exclude_modules", "layers_pattern"):
        value = settings.get(key, [])
        names = [value] if isinstance(value, str) else value
        is_list = isinstance(names, list) and len(names) <= MAX_NAMES
        if not is_list or not all(name == TARGETS or _is_name(name) for name in names):
            raise ValueError(f"{key} must be names of modules, got {shown(value)}")
        settings |= {key: names} if key in settings and names != [TARGETS] else {}
    ranks, alphas = settings.get("rank_pattern", {}), settings.get("alpha_pattern", {})
    if not all(map(_is_name, (*ranks, *alphas))) or len(ranks) + len(alphas) > MAX_NAMES:
        raise ValueError(f"rank_pattern and alpha_pattern must name modules, got {shown([*ranks, *alphas])}")
    most = max((shape[0] for name, shape in stored.items() if "lora_A" in name and shape), default=0)
    for rank in (settings.get("r", 8), *ranks.values()):
        if type(rank) is not int or not 1 <= rank <= MAX_RANK:
            raise ValueError(f"a rank must be a whole number between 1 and {MAX_RANK}, got {shown(rank)}")
        if rank > most:
            raise ValueError(f"the rank {rank} does not fit its weights")
    for alpha in (settings.get("lora_alpha", 8), *alphas.values()):
        if isinstance(alpha, bool) or not isinstance(alpha, (int, float)) or not abs(alpha) <= MAX_ALPHA:
            raise ValueError(f"lora_alpha must be a number of at most {MAX_ALPHA}, got {shown(alpha)}")
    if not 0 <= settings.get("lora_dropout", 0.0) < 1:
        raise ValueError(f"lora_dropout must be at least 0 and below 1, got {shown(settings['lora_dropout'])}")
    layers = settings.get("layers_to_transform", [])
    if not all(type(layer) is int for layer in (layers if isinstance(layers, list) else [layers])):
        raise ValueError(f"layers_to_transform must be numbers of layers, got {shown(layers)}")
    if wrong := [name for name in SWITCHES if not isinstance(settings.get(name, False), bool)]:
        raise ValueError(f"{wrong[0]} must be true or false, got {shown(settings[wrong[0]])}")


def _is_name(value: object) -> bool:
    return isinstance(value, str) and _NAME.fullmatch(value) is not None


def load_adapter(folder: Path, model: HfChatModel) -> None:
    """Add the adapter of a folder to its base model, separate from the weights and trainable.

    Raises:
        CheckpointError: The adapter is damaged or does not fit the model.
    """
    peft = import_peft()
    try:
        settings = read_json(folder / ADAPTER_CONFIG)
        settings = {name: settings[name] for name in LORA_KEYS if settings.get(name) is not None}
        _check_settings(settings, read_header(folder / ADAPTER_WEIGHTS))
        config = peft.LoraConfig(**settings)
        config.init_lora_weights, config.inference_mode = True, False
        _name_base(config, model.source)
        network = peft.get_peft_model(model.network, config)
        tensors = safetensors.torch.load_file(folder / ADAPTER_WEIGHTS)
    except Exception as error:  # peft, safetensors and json raise many types
        raise CheckpointError(f"The adapter in {folder} cannot be read ({first_line(error)}). Copy it again.") from None
    expected = _shapes(peft.get_peft_model_state_dict(network, save_embedding_layers=False))
    actual = _shapes(tensors)
    wrong = sorted(name for name in expected.keys() | actual.keys() if expected.get(name) != actual.get(name))
    if wrong:
        raise CheckpointError(
            f"The adapter in {folder} does not fit the model in {model.source} ({wrong[0]}). Copy both again."
        )
    peft.set_peft_model_state_dict(network, tensors)
    model.network, model.has_adapter = network, True


def _shapes(tensors: dict[str, torch.Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}


def merge(model: HfChatModel) -> None:
    """Add the adapter to the weights and remove it.

    Raises:
        CheckpointError: The merged weights are not finite.
    """
    adapted: Any = model.network  # a peft model
    try:
        network = adapted.merge_and_unload(safe_merge=True)
    except ValueError as error:
        raise CheckpointError(f"The adapter cannot be merged ({first_line(error)}). Train it again.") from None
    model.network, model.has_adapter = network, False


def save_adapter(model: HfChatModel, folder: Path) -> None:
    """Write the two files of the adapter into a folder."""
    tensors = import_peft().get_peft_model_state_dict(model.network, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    model.network.peft_config["default"].save_pretrained(str(folder))
