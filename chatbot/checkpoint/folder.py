"""A checkpoint: a self-describing transformers folder, saved atomically, with load errors that say what to do.

    config.json  model.safetensors  generation_config.json  tokenizer.json  tokenizer_config.json
    training.json (how it was made)  README.md (model card, optional)

`python -m chatbot.checkpoint SOURCE TARGET` writes a copy: with --int8 a compact one, every matrix as int8 with one fp32
scale a row (absolute maximum / 127), read back as floats. SOURCE can be a transformers GPT-2 folder (`chatbot.checkpoint.gpt2`), also
one that has only a pytorch_model.bin; everything else reads weights from safetensors alone. It can be a chat model of
another project (`chatbot.model.hf_chat_model`), and a LoRA adapter to one (`chatbot.checkpoint.lora`), which is merged into a copy of its base.

An adapter's folder has adapter_config.json and adapter_model.safetensors instead of config.json and model.safetensors.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import safetensors.torch
import torch
from transformers.utils.logging import disable_progress_bar

from chatbot.checkpoint import gpt2, lora
from chatbot.checkpoint.location import locate
from chatbot.errors import CheckpointError, first_line, last_line
from chatbot.model.config import XianliaoConfig
from chatbot.model.hf_chat_model import MODEL_TYPES, HfChatModel, load_hf_chat_model, loading_problems
from chatbot.model.int8 import quantize
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import read_json, replacing, replacing_files, write_json
from chatbot.text.tokenizer import TOKENIZER_FILE, VOCABULARY_FILE, DialogueTokenizer

CONFIG, WEIGHTS, GENERATION, TRAINING = "config.json", "model.safetensors", "generation_config.json", "training.json"
BACKWARD = "backward"
"""Folder in a checkpoint's of the model that `chatbot.decoding.rerank` asks for log p(context | reply)."""

PICKLED, SHARDS = "pytorch_model.bin", "model.safetensors.index.json"


def resolve(checkpoint: str | Path) -> Path:
    """The folder of a checkpoint; `default` is the bundled one, in a checkout or installed as package data.

    Raises:
        CheckpointError: There is no such folder, or files are missing in it.
    """
    path = locate(checkpoint)
    if not path.is_dir():
        raise CheckpointError(
            f"There is no checkpoint folder {path}; check the path, or leave it out for the bundled one."
        )
    needed = (CONFIG, WEIGHTS, TOKENIZER_FILE)
    if (path / lora.ADAPTER_CONFIG).is_file():
        needed = (lora.ADAPTER_WEIGHTS, TOKENIZER_FILE)
    missing = [name for name in needed if not (path / name).is_file()]
    if WEIGHTS in missing and (path / SHARDS).is_file():
        missing.remove(WEIGHTS)
    if TOKENIZER_FILE in missing and (path / VOCABULARY_FILE).is_file():
        missing.remove(TOKENIZER_FILE)
    if missing == [WEIGHTS] and (path / PICKLED).is_file():
        if is_chat_model(path):
            raise CheckpointError(
                f"{path} has its weights in {PICKLED} only; save the model again with transformers, as safetensors."
            )
        raise CheckpointError(
            f"{path} has its weights in {PICKLED} only; convert it once: python -m chatbot.checkpoint {path} NEW_FOLDER"
        )
    if missing:
        raise CheckpointError(
            f"{path} is no complete checkpoint: {' and '.join(missing)} missing; copy or train it again."
        )
    return path


def load_model(
    checkpoint: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32, merge: bool = True
) -> XianliaoForCausalLM | HfChatModel:
    """The model of a checkpoint folder, in evaluation mode.

    Args:
        checkpoint: A folder, or `default`.
        device: Where the model lies.
        dtype: Of its weights.
        merge: Add a LoRA adapter to the weights of its base; otherwise it stays apart and can be trained on.

    Raises:
        CheckpointError: A file is missing, cut short or does not fit the others.
    """
    path = resolve(checkpoint)
    if is_chat_model(path):
        return load_chat_model(path, dtype, merge).to(device).eval()
    if is_foreign(path):
        return import_gpt2(path).to(device=device, dtype=dtype).eval()
    config = load_config(path)
    disable_progress_bar()  # of transformers: weights this small load at once
    try:
        model, found = XianliaoForCausalLM.from_pretrained(path, config=config, dtype=dtype, output_loading_info=True)
    except Exception as error:  # safetensors, transformers and torch raise many kinds
        raise CheckpointError(
            f"{path / WEIGHTS} cannot be read ({first_line(error)}); copy or train the checkpoint again."
        ) from None
    wrong = loading_problems(found)
    if wrong:
        raise CheckpointError(
            f"{path / WEIGHTS} does not fit {CONFIG} ({', '.join(wrong)}); copy or train the checkpoint again."
        )
    return model.to(device).eval()


def is_chat_model(path: Path) -> bool:
    """Whether a folder holds a chat model that transformers runs, or a LoRA adapter to one."""
    return (path / lora.ADAPTER_CONFIG).is_file() or read_json(path / CONFIG).get("model_type") in MODEL_TYPES


def load_chat_model(path: Path, dtype: torch.dtype = torch.float32, merge: bool = True) -> HfChatModel:
    """A chat model of another project, from its folder or from that of a LoRA adapter; see `load_model`.

    Raises:
        CheckpointError, TokenizerError, TemplateError: What is missing, damaged or does not fit.
    """
    tokenizer = DialogueTokenizer.load(path)
    if not (path / lora.ADAPTER_CONFIG).is_file():
        return load_hf_chat_model(path, tokenizer, dtype)
    base = resolve(lora.base_of(path))
    if (base / lora.ADAPTER_CONFIG).is_file() or not is_chat_model(base):
        raise CheckpointError(f"{path} is an adapter to {base}, which is no model of type {', '.join(MODEL_TYPES)}.")
    model = load_hf_chat_model(base, tokenizer, dtype)
    lora.load_adapter(path, model)
    if merge:
        lora.merge(model)
    return model


def is_foreign(path: Path) -> bool:
    """Whether a folder holds a model of another project, by its config.json."""
    return read_json(path / CONFIG).get("model_type") != XianliaoConfig.model_type


def import_gpt2(path: Path, layer_types: Sequence[str] = ("softmax",), pickled: bool = False) -> XianliaoForCausalLM:
    """A transformers GPT-2 folder as one of our models; see `chatbot.checkpoint.gpt2`.

    Args:
        path: The folder.
        layer_types: Mixers, repeated until every layer has one.
        pickled: Read pytorch_model.bin instead of model.safetensors.

    Raises:
        CheckpointError, ImportedModelError, TokenizerError: What is missing, damaged or not GPT-2.
    """
    tokenizer = DialogueTokenizer.load(path)
    config = gpt2.to_config(read_json(path / CONFIG), tokenizer, layer_types)
    if pickled:
        return gpt2.to_model(config, gpt2.read_bin(path / PICKLED), tokenizer)
    try:
        tensors = safetensors.torch.load_file(path / WEIGHTS)
    except Exception as error:  # safetensors raises several kinds
        raise CheckpointError(f"{path / WEIGHTS} cannot be read ({first_line(error)}); copy it again.") from None
    return gpt2.to_model(config, tensors, tokenizer)


def load_config(path: Path) -> XianliaoConfig:
    """config.json of a checkpoint folder.

    Raises:
        CheckpointError: It is damaged or belongs to another kind of model.
    """
    settings = read_json(path / CONFIG)
    if settings.get("model_type") != XianliaoConfig.model_type:
        raise CheckpointError(
            f"{path} holds a model of type {settings.get('model_type')!r}; give a checkpoint made by xianliao-train."
        )
    try:
        return XianliaoConfig.from_dict(settings)
    except Exception as error:  # the strict validators raise several kinds
        reason = last_line(error)
        raise CheckpointError(f"{path / CONFIG} does not describe a model ({reason}); copy it again.") from None


def save(
    folder: str | Path,
    model: XianliaoForCausalLM | HfChatModel,
    tokenizer: DialogueTokenizer,
    generation: dict,
    training: dict,
    int8: bool = False,
    weights: dict[str, torch.Tensor] | None = None,
) -> None:
    """Writes a checkpoint folder; every file is replaced atomically, the weights last but one, training.json last.

    Args:
        folder: Created when missing.
        model: Its weights are stored as they are, or as int8 with a scale per row; of one with a LoRA adapter the
            adapter alone.
        tokenizer: Stored beside the model.
        generation: Content of generation_config.json (`chatbot.decoding.rules.truncation.ReplySettings` reads it).
        training: Content of training.json.
        int8: Store matrices as int8.
        weights: Stored in place of the model's own, which may be spread over processes.

    Raises:
        CheckpointError: The weights cannot be written.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with replacing_files(folder) as temporary:
        tokenizer.save(temporary)
    if isinstance(model, XianliaoForCausalLM):
        # All of ours, also what is a default today: a later default must not change an old checkpoint.
        own = {name: getattr(model.config, name) for name in XianliaoConfig.__annotations__}
        config = {**model.config.to_diff_dict(), **own, "architectures": ["XianliaoForCausalLM"]}
        config["weight_storage"] = "int8" if int8 else "float"
        write_json(folder / CONFIG, config)
    ids = {name: getattr(model.config, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    write_json(folder / GENERATION, {**ids, **generation})
    try:
        if isinstance(model, XianliaoForCausalLM):
            tied = model._tied_weights_keys if model.config.tie_word_embeddings else {}
            whole = model.state_dict() if weights is None else weights
            tensors = {name: t.detach().cpu().contiguous() for name, t in whole.items() if name not in tied}
            tensors = quantize(tensors) if int8 else tensors
            with replacing(folder / WEIGHTS) as temporary:
                safetensors.torch.save_file(tensors, temporary, metadata={"format": "pt"})
        else:
            save_chat_model(folder, model)
    except safetensors.SafetensorError as error:
        raise CheckpointError(
            f"The weights could not be written to {folder} ({first_line(error)}); make room there. What was there before"
            " is still whole."
        ) from None
    write_json(folder / TRAINING, training)


def save_chat_model(folder: Path, model: HfChatModel) -> None:
    """Writes config and weights of a chat model in transformers' form, or its adapter in peft's."""
    with replacing_files(folder) as temporary:
        if model.has_adapter:
            lora.save_adapter(model, temporary)
            return
        model.inner.config.save_pretrained(temporary)
        tied = model.inner._tied_weights_keys if model.inner.config.tie_word_embeddings else {}
        tensors = {name: t.detach().cpu() for name, t in model.inner.state_dict().items() if name not in tied}
        tensors = {name: tensor.contiguous() for name, tensor in tensors.items()}
        safetensors.torch.save_file(tensors, temporary / WEIGHTS, metadata={"format": "pt"})
