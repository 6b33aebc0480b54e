"""What a run needs to fine-tune a chat model of another project with LoRA instead of all weights of one of ours."""

from __future__ import annotations

import torch
from torch import nn

from chatbot.checkpoint.lora import attach
from chatbot.model.hf_chat_model import HfChatModel
from training.settings import SettingsError, TrainSettings


def add_lora(model: nn.Module, settings: TrainSettings) -> nn.Module:
    """Freezes a foreign model under a new adapter; one that has an adapter trains on with it, ours stay as they are.

    Raises:
        SettingsError: Settings that a foreign model cannot have.
        CheckpointError: peft is not installed.
    """
    if not isinstance(model, HfChatModel):
        return model
    if settings.optimizer == "muon":
        raise SettingsError("--optimizer muon knows only our own models; use adamw to fine-tune this one.")
    if not model.has_adapter:
        attach(model, settings.lora_rank, settings.lora_alpha)
    for adapters in [module.lora_dropout for module in model.modules() if hasattr(module, "lora_dropout")]:
        for name in adapters:
            adapters[name] = nn.Dropout(0.0)  # peft has nn.Identity; `training.optim.regularizers` sets the share
    model.get_input_embeddings().register_forward_hook(_ask_for_gradient)
    return model


def _ask_for_gradient(module: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    """A frozen embedding's output is differentiable all the same, which adversarial regularizers need."""
    return output.requires_grad_() if torch.is_grad_enabled() else output


def trained_part(model: nn.Module) -> nn.Module:
    """What a run changes and has to save: the adapter of a foreign model, the whole of ours."""
    if not isinstance(model, HfChatModel):
        return model
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    return nn.ParameterDict({name.replace(".", "/"): parameter for name, parameter in trained.items()})
