"""LoRA fine-tuning of a chat model of another project; this project's models train all weights."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn

from chatbot.checkpoint.lora import attach
from chatbot.model.hf_chat_model import HfChatModel
from training.settings import SettingsError, TrainSettings

Model = TypeVar("Model", bound=nn.Module)


def add_lora(model: Model, settings: TrainSettings) -> Model:
    """Freeze a chat model of another project and attach a new adapter; an adapter it already has is trained further.

    Returns:
        The model; a model of this project is returned unchanged.

    Raises:
        SettingsError: The settings do not fit the model.
        CheckpointError: peft is not installed.
    """
    if not isinstance(model, HfChatModel):
        return model
    if settings.optimizer == "muon":
        raise SettingsError("--optimizer muon supports only models of this project; use --optimizer adamw.")
    if not model.has_adapter:
        attach(model, settings.lora_rank, settings.lora_alpha)
    for module in model.modules():
        adapters = getattr(module, "lora_dropout", None)
        if isinstance(adapters, nn.ModuleDict):
            for name in adapters:
                adapters[name] = nn.Dropout(0.0)  # peft has nn.Identity; `training.optim.regularizers` sets the share
    model.get_input_embeddings().register_forward_hook(_require_gradient)
    return model


def _require_gradient(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """Make the output of a frozen embedding differentiable, which adversarial regularizers need."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def trained_part(model: nn.Module) -> nn.Module:
    """Return the part of a model that a run trains and saves: the adapter of a chat model, or the whole model."""
    if not isinstance(model, HfChatModel):
        return model
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in trained.items()})
