"""Checkpoint folders: self-describing transformers folders that are saved atomically.

    config.json  model.safetensors  generation_config.json  tokenizer.json  tokenizer_config.json
    training.json (how the model was made)  README.md (model card, optional)

Three other kinds of folder can be loaded:

* A transformers GPT-2 folder (`chatbot.checkpoint.gpt2`).
* A chat model of another project (`chatbot.model.hf_chat_model`).
* A LoRA adapter to a chat model (`chatbot.checkpoint.lora`). It has adapter_config.json and adapter_model.safetensors
  instead of config.json and model.safetensors.

Weights are read from safetensors only. `python -m chatbot.checkpoint SOURCE TARGET` converts a GPT-2 that has a
pytorch_model.bin. With the option --int8, every matrix is stored as int8 with one fp32 scale per row (absolute
maximum / 127), and converted back to floats when it is loaded.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from chatbot.checkpoint import gpt2, lora
from chatbot.checkpoint.chat_model import load_hf_chat_model
from chatbot.checkpoint.location import CONFIG, GENERATION, PICKLED, TRAINING, WEIGHTS, resolve
from chatbot.checkpoint.own_model import load_own_model
from chatbot.checkpoint.weights import read_tensors, stored_shapes, weight_files
from chatbot.errors import CheckpointError, first_line
from chatbot.model.config import XianliaoConfig
from chatbot.model.hf_chat_model import MODEL_TYPES, HfChatModel
from chatbot.model.int8 import quantize
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json, replacing, replacing_files, write_json
from chatbot.text.tokenizer import DialogueTokenizer

BACKWARD = "backward"
"""Subfolder of a checkpoint with the backward model of `chatbot.decoding.rerank`, which gives log p(context | reply)."""


def load_model(
    checkpoint: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, merge: bool = True
) -> XianliaoForCausalLM | HfChatModel:
    """Load the model of a checkpoint folder, in evaluation mode.

    Args:
        checkpoint: A folder, or `default`.
        device: Device of the model.
        dtype: Weight dtype.
        merge: Whether to merge a LoRA adapter into the weights of its base; a separate adapter can be trained further.

    Raises:
        CheckpointError: A file is missing, truncated or does not fit the others.
    """
    path = resolve(checkpoint)
    model: Any  # transformers' types do not fit together
    if is_chat_model(path):
        model = load_chat_model(path, dtype, merge)
    elif is_foreign(path):
        model = import_gpt2(path)
        model.to(dtype)
    else:
        model = load_own_model(path, dtype)
    return model.to(device).eval()


def is_chat_model(path: Path) -> bool:
    """Whether a folder holds a chat model of another project, or a LoRA adapter to one."""
    return (path / lora.ADAPTER_CONFIG).is_file() or read_json(path / CONFIG).get("model_type") in MODEL_TYPES


def load_chat_model(path: Path, dtype: torch.dtype = torch.float32, merge: bool = True) -> HfChatModel:
    """Load a chat model of another project, from its folder or the folder of a LoRA adapter.

    Args:
        path: The folder.
        dtype: Weight dtype.
        merge: See `load_model`.

    Raises:
        CheckpointError, TokenizerError, TemplateError: A file is missing, damaged or does not fit the others.
    """
    tokenizer = DialogueTokenizer.load(path)
    if not (path / lora.ADAPTER_CONFIG).is_file():
        return load_hf_chat_model(path, tokenizer, dtype)
    base = resolve(lora.base_of(path))
    if (base / lora.ADAPTER_CONFIG).is_file() or not is_chat_model(base):
        raise CheckpointError(f"{path} is an adapter to {base}, whose type is not one of {', '.join(MODEL_TYPES)}.")
    model = load_hf_chat_model(base, tokenizer, dtype)
    lora.load_adapter(path, model)
    if merge:
        lora.merge(model)
    return model


def is_foreign(path: Path) -> bool:
    """Whether config.json describes a model of another project."""
    return read_json(path / CONFIG).get("model_type") != XianliaoConfig.model_type


def import_gpt2(path: Path, layer_types: Sequence[str] = ("softmax",), pickled: bool = False) -> XianliaoForCausalLM:
    """Import a transformers GPT-2 folder; see `chatbot.checkpoint.gpt2`.

    Args:
        path: The folder.
        layer_types: Mixers, repeated until every layer has one.
        pickled: Read pytorch_model.bin instead of model.safetensors.

    Raises:
        CheckpointError, ImportedModelError, TokenizerError: A file is missing, damaged, or does not belong to a GPT-2.
    """
    tokenizer = DialogueTokenizer.load(path)
    config = gpt2.to_config(read_json(path / CONFIG), tokenizer, layer_types)
    if pickled:
        return gpt2.to_model(config, gpt2.read_bin(path / PICKLED), tokenizer)
    files = weight_files(path)
    stored_shapes(files)
    return gpt2.to_model(config, read_tensors(files), tokenizer)


def save(
    folder: str | Path,
    model: XianliaoForCausalLM | HfChatModel,
    tokenizer: DialogueTokenizer,
    generation: dict,
    training: dict,
    int8: bool = False,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Write a checkpoint folder. Every file is replaced atomically; the weights are written second to last and
    training.json last.

    Args:
        folder: Folder to write; it is created if missing.
        model: The model; if it has a LoRA adapter, only the adapter is stored.
        tokenizer: The tokenizer.
        generation: Content of generation_config.json; `chatbot.decoding.settings.settings_from` reads it.
        training: Content of training.json.
        int8: Store matrices as int8 with one scale per row.
        weights: Tensors to store instead of the model's, which may be distributed over processes.

    Raises:
        CheckpointError: The weights cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_files(folder) as temporary:
        tokenizer.save(temporary)
    if isinstance(model, XianliaoForCausalLM):
        write_json(folder / CONFIG, _config_of(model, int8))
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / GENERATION, {**ids, **generation})
    try:
        if isinstance(model, XianliaoForCausalLM):
            tensors = _tensors_of(model, weights)
            with replacing(folder / WEIGHTS) as temporary:
                stored = quantize(tensors) if int8 else tensors
                safetensors.torch.save_file(stored, temporary, metadata={"format": "pt"})
        else:
            save_chat_model(folder, model)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"Cannot write the weights to {folder} ({first_line(error)}). Free some disk space."
            " The former weights are intact."
        ) from None
    write_json(folder / TRAINING, training)


def _config_of(model: XianliaoForCausalLM, int8: bool) -> dict[str, Any]:
    """Return the content of config.json.

    The content includes settings that have their default values, so that a later change of a default does not change an
    old checkpoint.
    """
    config: Any = model.config
    settings = {name: getattr(config, name) for name in XianliaoConfig.__annotations__}
    return {
        **config.to_diff_dict(),
        **settings,
        "architectures": ["XianliaoForCausalLM"],
        "weight_storage": "int8" if int8 else "float",
    }


def _tensors_of(model: Any, weights: dict[str, torch.Tensor] | None = None) -> dict[str, torch.Tensor]:
    """Return the tensors of a transformers model on the CPU; a tensor that is tied to another one is left out.

    Args:
        model: The model.
        weights: Its state dict, if it is not `model.state_dict()`.
    """
    tied = model._tied_weights_keys if model.config.tie_word_embeddings else {}
    state = model.state_dict() if weights is None else weights
    return {name: tensor.detach().cpu().contiguous() for name, tensor in state.items() if name not in tied}


def save_chat_model(folder: Path, model: HfChatModel) -> None:
    """Write config and weights of a chat model in transformers' form, or its adapter in peft's form."""
    with replacing_files(folder) as temporary:
        if model.has_adapter:
            lora.save_adapter(model, temporary)
            return
        model.inner.config.save_pretrained(temporary)
        safetensors.torch.save_file(_tensors_of(model.inner), temporary / WEIGHTS, metadata={"format": "pt"})
