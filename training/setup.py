"""Before the first step: the model, what must not change when a run goes on, and whose folder it is."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch

from chatbot.checkpoint.folder import TRAINING, load_model, resolve
from chatbot.errors import last_line
from chatbot.model.config import XianliaoConfig
from chatbot.model.hf_chat_model import HfChatModel
from chatbot.model.layer_types import repeat_layer_types
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json
from chatbot.text.prepared_set import load_manifest
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.turn_store import parse_source
from training.end_head import with_termination
from training.lora import add_lora
from training.settings import ModelSettings, SettingsError, TrainSettings


def load_manifests(settings: TrainSettings) -> list[list[dict]]:
    """The manifests of the sets of each stage.

    Raises:
        FileError: A set is missing or damaged.
        SettingsError: The sets have different tokenizers.
    """
    stages = [settings.of_stage(number) for number in range(max(1, len(settings.stages)))]
    manifests = [[load_manifest(parse_source(text).folder) for text in stage.data] for stage in stages]
    if len({manifest["tokenizer_hash"] for stage in manifests for manifest in stage}) > 1:
        raise SettingsError("The prepared sets have different tokenizers; prepare them with one --tokenizer.")
    return manifests


def load_or_build(settings: TrainSettings, tokenizer: DialogueTokenizer) -> XianliaoForCausalLM:
    """The model a run starts from.

    Raises:
        SettingsError: The data was prepared with another tokenizer, or the shape is not one that a model can have.
        CheckpointError: The checkpoint cannot be read.
    """
    if settings.init is None:
        head = {"termination_epsilon": settings.termination_epsilon, "termination_delay": settings.termination_delay}
        kinds = {"termination": "softmax", "direction": "forward"}
        asked = {name: getattr(settings, name) for name in kinds}
        kinds |= {name: kind for name, kind in asked.items() if kind != "keep"}
        return build_model(settings.model, tokenizer, **kinds, **head)
    path = resolve(settings.init)
    if DialogueTokenizer.load(path).to_json() != tokenizer.to_json():
        raise SettingsError(
            f"The data and {path} have different tokenizers; prepare the data again with --tokenizer {path}."
        )
    return with_settings(load_model(path, merge=False), settings)


def with_settings(model: XianliaoForCausalLM | HfChatModel, settings: TrainSettings):
    """A loaded model with what the settings change of it: a LoRA adapter, another termination, its direction.

    Raises:
        SettingsError: Another project's chat model cannot have them.
    """
    if not isinstance(model, XianliaoForCausalLM):
        if settings.termination != "keep" or settings.direction != "keep":
            raise SettingsError("--termination and --direction are for models of our own; leave them out with --init.")
        return add_lora(model, settings)
    if settings.termination != "keep":
        head = (settings.termination, settings.termination_epsilon, settings.termination_delay)
        model = with_termination(model, *head)
    if settings.direction != "keep":
        model.config.direction = settings.direction
    return model


def needs_fit(settings: TrainSettings, model: torch.nn.Module) -> bool:
    """Whether the model has an end head that the checkpoint it starts from had not."""
    head = getattr(model, "end_head", None)
    return settings.init is not None and head is not None and not head.weight.any()


def ancestor_of(checkpoint: Path) -> dict:
    """How the checkpoint that a run starts from was made, as far as it says."""
    path = checkpoint / TRAINING
    return read_json(path) if path.is_file() else {"imported_from": checkpoint.name}


def build_model(shape: ModelSettings, tokenizer: DialogueTokenizer, **settings) -> XianliaoForCausalLM:
    """A new model of a shape, for a tokenizer; `settings` are other fields of its config.

    Raises:
        SettingsError: The shape is not one that a model can have.
    """
    sizes = asdict(shape) | settings
    layer_types = repeat_layer_types(sizes.pop("layer_types"), shape.num_hidden_layers)
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    try:
        config = XianliaoConfig(vocab_size=tokenizer.vocab_size, layer_types=layer_types, **ids, **sizes)
    except Exception as error:  # the strict validators raise several kinds
        raise SettingsError(f"--model.…: {last_line(error)}") from None
    return XianliaoForCausalLM(config)
