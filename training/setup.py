"""The model that a run starts from."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from chatbot.checkpoint.folder import TRAINING, load_model, resolve
from chatbot.checkpoint.hub import name_of
from chatbot.errors import last_line
from chatbot.model.config import XianliaoConfig
from chatbot.model.hf_chat_model import HfChatModel
from chatbot.model.layer_types import repeat_layer_types
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from chatbot.text.tokenizer import DialogueTokenizer
from training.end_head import with_termination
from training.inputs import check_tokenizer
from training.latent.objective import check_latent, with_latent
from training.lora import add_lora
from training.optim.memory import check_parameters
from training.settings import ModelSettings, SettingsError, TrainSettings

CPU = torch.device("cpu")

TrainableModel = XianliaoForCausalLM | HfChatModel


def load_or_build(settings: TrainSettings, tokenizer: DialogueTokenizer, device: torch.device) -> TrainableModel:
    """Return the model that a run on a device starts from: the checkpoint of --init, or a new model.

    Raises:
        SettingsError: The data was prepared with another tokenizer, or no model can have this shape on this machine.
        CheckpointError: The checkpoint cannot be read.
    """
    if settings.init is None:
        return build_model(
            settings.model,
            tokenizer,
            device,
            termination="softmax" if settings.termination == "keep" else settings.termination,
            direction="forward" if settings.direction == "keep" else settings.direction,
            termination_epsilon=settings.termination_epsilon,
            termination_delay=settings.termination_delay,
        )
    path = resolve(settings.init)
    check_tokenizer(path, tokenizer)
    return apply_settings(load_model(path, merge=False), settings)


def apply_settings(model: TrainableModel, settings: TrainSettings) -> TrainableModel:
    """Apply the settings that change a loaded model: a LoRA adapter, another termination, another direction.

    Raises:
        SettingsError: The model is a chat model of another project, which does not support them.
    """
    if not isinstance(model, XianliaoForCausalLM):
        if (settings.termination, settings.direction, settings.latent) != ("keep", "keep", "keep"):
            raise SettingsError(
                "--termination, --direction and --latent support only models of this project; leave them out."
            )
        return add_lora(model, settings)
    if settings.termination != "keep":
        model = with_termination(model, settings.termination, settings.termination_epsilon, settings.termination_delay)
    if settings.latent != "keep":
        check_latent(model)
        model = with_latent(model, settings)
    if settings.direction != "keep":
        setattr(model.config, "direction", settings.direction)  # noqa: B010  # the config class is generic to mypy
    return model


def has_new_end_head(settings: TrainSettings, model: torch.nn.Module) -> bool:
    """Return whether the model has an end-of-turn head that the checkpoint of --init does not have."""
    head = getattr(model, "end_head", None)
    return settings.init is not None and head is not None and not head.weight.any()


def ancestor_of(checkpoint: Path) -> dict[str, Any]:
    """Return the training record of the checkpoint that a run starts from, or its name if it has no record."""
    path = checkpoint / TRAINING
    return read_json(path) if path.is_file() else {"imported_from": name_of(checkpoint)}


def build_model(
    shape: ModelSettings, tokenizer: DialogueTokenizer, device: torch.device = CPU, **settings: Any
) -> XianliaoForCausalLM:
    """Return a new model, in the main memory.

    Args:
        shape: Shape of the model.
        tokenizer: Tokenizer of the data.
        device: Device on which it will be trained.
        settings: Other fields of its config.

    Raises:
        SettingsError: No model can have this shape, or this machine has too little memory.
    """
    sizes: dict[str, Any] = asdict(shape) | settings
    sizes["layer_types"] = repeat_layer_types(sizes["layer_types"], shape.num_hidden_layers)
    ids: dict[str, Any] = {
        "pad_token_id": tokenizer.pad_id,
        "bos_token_id": tokenizer.cls_id,
        "eos_token_id": tokenizer.sep_id,
    }
    try:
        config = XianliaoConfig(vocab_size=tokenizer.vocab_size, **ids, **sizes)
    except Exception as error:  # the strict validators raise several kinds
        raise SettingsError(f"--model.…: {last_line(error)}") from None
    with torch.random.fork_rng(devices=[]), torch.device("meta"):  # without memory, to count the parameters
        planned = XianliaoForCausalLM(config)
    check_parameters(planned, device)
    return XianliaoForCausalLM(config)
