"""LoRA adapters on a chat model of another project (`chatbot.model.hf_chat_model`), through peft.

    adapter_config.json (names the base model's folder)  adapter_model.safetensors

are peft's own files, read by whatever reads LoRA adapters. For serving the adapter is merged into the weights.
"""

from __future__ import annotations

import json
from pathlib import Path

import safetensors.torch

from chatbot.errors import CheckpointError, first_line
from chatbot.model.hf_chat_model import HfChatModel

ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
TARGETS = "all-linear"
"""Every linear layer but the output head (peft's name for it)."""


def import_peft():
    """The peft package.

    Raises:
        CheckpointError: It is not installed.
    """
    try:
        import peft
    except ImportError:
        raise CheckpointError("LoRA needs the package peft; install it with: pip install peft") from None
    return peft


def base_of(folder: Path) -> Path:
    """The base model's folder that an adapter folder names.

    Raises:
        CheckpointError: adapter_config.json is damaged or no LoRA, or the base model is gone.
    """
    path = folder / ADAPTER_CONFIG
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        kind, base = content["peft_type"], content["base_model_name_or_path"]
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointError(f"{path} cannot be read ({first_line(error)}); copy it again.") from None
    if kind != "LORA":
        raise CheckpointError(f"{folder} holds an adapter of kind {kind}; only LoRA ones can be read.")
    if not base or not (Path(base).is_dir() or (folder / base).is_dir()):
        raise CheckpointError(
            f"The base model {base} of {folder} is not there; put it back, or write its folder as"
            f" base_model_name_or_path into {path}."
        )
    return Path(base) if Path(base).is_dir() else folder / base


def attach(model: HfChatModel, rank: int, alpha: float) -> None:
    """Freezes the model and gives its linear layers new adapters, which change nothing until they are trained."""
    peft = import_peft()
    config = peft.LoraConfig(task_type="CAUSAL_LM", r=rank, lora_alpha=alpha, target_modules=TARGETS)
    config.base_model_name_or_path = str(model.source.resolve())
    model.network, model.has_adapter = peft.get_peft_model(model.network, config), True


def load_adapter(folder: Path, model: HfChatModel) -> None:
    """Puts the adapter of a folder on its base model; it can be trained on.

    Raises:
        CheckpointError: The adapter is damaged or does not fit the model.
    """
    peft = import_peft()
    try:
        config = peft.LoraConfig.from_pretrained(str(folder))
        config.init_lora_weights, config.inference_mode = True, False
        config.base_model_name_or_path = str(model.source.resolve())
        network = peft.get_peft_model(model.network, config)
        tensors = safetensors.torch.load_file(folder / ADAPTER_WEIGHTS)
    except Exception as error:  # peft, safetensors and json raise many kinds
        raise CheckpointError(f"The adapter in {folder} cannot be read ({first_line(error)}); copy it again.") from None
    expected = peft.get_peft_model_state_dict(network, save_embedding_layers=False)
    shapes, found = ({name: tuple(t.shape) for name, t in part.items()} for part in (expected, tensors))
    wrong = sorted(name for name in shapes.keys() | found.keys() if shapes.get(name) != found.get(name))
    if wrong:
        raise CheckpointError(
            f"The adapter in {folder} does not fit the model in {model.source} ({wrong[0]}); copy both again."
        )
    peft.set_peft_model_state_dict(network, tensors)
    model.network, model.has_adapter = network, True


def merge(model: HfChatModel) -> None:
    """Adds the adapter to the weights and takes it off.

    Raises:
        CheckpointError: The sum is not a number.
    """
    try:
        model.network, model.has_adapter = model.network.merge_and_unload(safe_merge=True), False
    except ValueError as error:
        raise CheckpointError(f"The adapter cannot be merged ({first_line(error)}); train it again.") from None


def save_adapter(model: HfChatModel, folder: Path) -> None:
    """Writes the two files of the adapter into a folder."""
    tensors = import_peft().get_peft_model_state_dict(model.network, save_embedding_layers=False)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    safetensors.torch.save_file(tensors, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})
    model.network.peft_config["default"].save_pretrained(str(folder))
