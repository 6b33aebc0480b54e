"""Import of a transformers GPT-2 folder as a model of this project.

With softmax layers the imported model computes the same function as transformers' GPT-2. With other mixers the shared
weights are an initialisation for fine-tuning. The architecture is that of thu-coai/CDial-GPT2 and uer/gpt2-chinese,
which have BERT's vocabulary. If the vocabulary has speaker tokens, their embeddings become the speaker embeddings,
because CDial-GPT2 adds them through token_type_ids; otherwise the speaker embeddings are zero.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from chatbot.checkpoint.weights import read_torch_file
from chatbot.errors import CheckpointError, first_line, last_line, shown
from chatbot.model.config import XianliaoConfig
from chatbot.model.hf_chat_model import MODEL_TYPES
from chatbot.model.layer_types import repeat_layer_types
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer

SPEAKER_TOKENS = ("[speaker1]", "[speaker2]")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
SUPPORTED = {
    "scale_attn_weights": True,
    "scale_attn_by_inverse_layer_idx": False,
    "add_cross_attention": False,
    "tie_word_embeddings": True,
}
"""The only supported value of each option. An option that is missing in config.json has this value too."""
NAMES = {
    "wte.weight": "token_embedding.weight",
    "wpe.weight": "position_embedding.weight",
    "ln_f.": "final_norm.",
    "h.": "blocks.",
    ".ln_1.": ".mixer_norm.",
    ".attn.c_attn.": ".mixer.qkv_proj.",
    ".attn.c_proj.": ".mixer.o_proj.",
    ".ln_2.": ".feed_forward_norm.",
    ".mlp.c_fc.": ".feed_forward.up_proj.",
    ".mlp.c_proj.": ".feed_forward.down_proj.",
}
"""Parts of parameter names: GPT-2's -> ours. A key with a leading dot matches anywhere in a name, other keys only at
its start."""
_TRANSPOSED = re.compile(r"\.(qkv_proj|o_proj|up_proj|down_proj)\.weight$")
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")

Tensors = dict[str, torch.Tensor]


class ImportedModelError(CheckpointError):
    """A model of another project that cannot be imported."""


def to_config(settings: dict, tokenizer: DialogueTokenizer, layer_types: Sequence[str]) -> XianliaoConfig:
    """Return our config for a GPT-2 config.json.

    Args:
        settings: Content of config.json.
        tokenizer: Tokenizer of the folder.
        layer_types: Mixers, repeated until every layer has one.

    Raises:
        ImportedModelError: The model is not a GPT-2, or has an option that our model does not support.
    """
    _check_supported(settings)
    heads, width, layers = settings.get("n_head", 12), settings.get("n_embd", 768), settings.get("n_layer", 12)
    activation = settings.get("activation_function", "gelu_new")
    positions = settings.get("n_positions", settings.get("n_ctx", 1024))
    try:
        return XianliaoConfig(
            vocab_size=tokenizer.vocab_size,  # GPT-2 may have more rows, which have no token
            hidden_size=width,
            num_hidden_layers=layers,
            num_attention_heads=heads,
            head_dim=width // heads,
            intermediate_size=settings.get("n_inner") or 4 * width,
            hidden_act=ACTIVATIONS.get(activation, activation),
            layer_types=repeat_layer_types(layer_types, layers),
            output_gate=False,
            short_conv=0,
            use_bias=True,
            positions="learned",
            max_position_embeddings=positions,
            layer_norm_eps=settings.get("layer_norm_epsilon", 1e-5),
            initializer_range=settings.get("initializer_range", 0.02),
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.cls_id,
            eos_token_id=tokenizer.sep_id,
            context_tokens=min(1024, positions // 2),
        )
    except Exception as error:  # a missing key, or one of many types from the strict validators
        raise ImportedModelError(f"Cannot import this GPT-2: {last_line(error)}") from None


def _check_supported(settings: dict) -> None:
    """Check the type and the options of a model.

    Raises:
        ImportedModelError: The model cannot be imported.
    """
    model_type = settings.get("model_type")
    if model_type == "openai-gpt":
        raise ImportedModelError(
            "Cannot import a GPT-1 model (openai-gpt): it normalises after its layers, which is not supported."
            " Import a GPT-2 model, for example CDial-GPT2 instead of CDial-GPT."
        )
    if model_type != "gpt2":
        raise ImportedModelError(
            f"A model of type {shown(model_type)} cannot be imported. Give a checkpoint of this project, a GPT-2 folder or a"
            f" chat model of one of the types {', '.join(MODEL_TYPES)}."
        )
    wrong = [name for name, value in SUPPORTED.items() if settings.get(name, value) != value]
    if wrong:
        name = wrong[0]
        raise ImportedModelError(f"Cannot import this GPT-2: {name} = {shown(settings[name])} is not supported.")


def to_model(config: XianliaoConfig, tensors: Tensors, tokenizer: DialogueTokenizer) -> XianliaoForCausalLM:
    """Return our model with GPT-2's tensors; parameters that GPT-2 does not have are drawn with seed 0.

    Raises:
        ImportedModelError: Tensors are missing, unknown or have another shape.
    """
    layer_types = config.layer_types or []
    with torch.device("meta"):  # without memory, until the shapes are known to be those of the file
        expected = XianliaoForCausalLM(config).state_dict()
    ours = _with_embeddings(dict(_renamed(tensors)), tokenizer)
    for name in [name for name in ours if ".mixer." in name and name in expected]:
        if layer_types[int(name.split(".")[1])] != "softmax" and ours[name].shape != expected[name].shape:
            del ours[name]  # a mixer of another width starts from new parameters
    unknown = sorted(ours.keys() - expected.keys())
    misshaped = sorted(name for name in ours.keys() & expected.keys() if ours[name].shape != expected[name].shape)
    is_plain = all(kind == "softmax" for kind in layer_types)
    missing = sorted(name for name in expected.keys() - ours.keys() if is_plain or ".mixer." not in name)
    faults = [f"unknown {name}" for name in unknown[:1]]
    faults += [f"{name} of shape {list(ours[name].shape)}" for name in misshaped[:1]]
    faults += [f"missing {name}" for name in missing[:1]]
    if faults:
        raise ImportedModelError(f"The weights do not fit this GPT-2's config.json: {', '.join(faults)}.")
    with torch.random.fork_rng(devices=[]):  # the caller's random numbers do not change
        torch.manual_seed(0)
        model = XianliaoForCausalLM(config)
    model.load_state_dict(ours, strict=False)
    return model


def _with_embeddings(tensors: Tensors, tokenizer: DialogueTokenizer) -> Tensors:
    """Return the tensors with one embedding row per token, speaker embeddings and a tied output head.

    Raises:
        ImportedModelError: The token embedding is missing or smaller than the vocabulary.
    """
    embedding = tensors.get("token_embedding.weight")
    if embedding is None or embedding.ndim != 2:
        raise ImportedModelError("The weights have no wte.weight, so this is not a GPT-2 language model.")
    if len(embedding) < tokenizer.vocab_size:
        raise ImportedModelError(
            f"The tokenizer has {tokenizer.vocab_size} tokens but the model only {len(embedding)}:"
            " they do not belong together."
        )
    embedding = embedding[: tokenizer.vocab_size].contiguous()
    speakers = [token for token in map(tokenizer.id_of, SPEAKER_TOKENS) if token is not None]
    is_known = len(speakers) == len(SPEAKER_TOKENS)
    return tensors | {
        "token_embedding.weight": embedding,
        "speaker_embedding.weight": embedding[speakers].clone() if is_known else torch.zeros_like(embedding[:2]),
        "lm_head.weight": embedding,
    }


def _renamed(tensors: Tensors) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of each parameter in our names and layout."""
    for name, tensor in tensors.items():
        if name == "lm_head.weight" or _BUFFERS.search(name):
            continue
        name = name.removeprefix("transformer.")
        for theirs, ours in NAMES.items():
            if theirs.startswith("."):
                name = name.replace(theirs, ours)
            elif name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        # GPT-2's Conv1D stores its matrices as [in, out].
        yield name, (tensor.mT if tensor.ndim == 2 and _TRANSPOSED.search(name) else tensor).float().contiguous()


def read_bin(path: Path) -> Tensors:
    """Return the tensors of a pytorch_model.bin.

    Raises:
        ImportedModelError: The file is damaged or holds more than tensors.
    """
    try:
        tensors = read_torch_file(path)
    except (OSError, ValueError) as error:
        raise ImportedModelError(f"{path} cannot be read as plain tensors ({first_line(error)}).") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise ImportedModelError(f"{path} holds more than named tensors. Give only the state_dict of the model.")
    return tensors
