"""Importing GPT-2: a transformers GPT-2 folder as one of our models.

With softmax layers the imported model computes what transformers' GPT-2 computes; with other mixers the weights it shares
with them are an initialisation to fine-tune. The architecture is that of thu-coai/CDial-GPT2 and uer/gpt2-chinese, whose
vocabulary is BERT's. Where the vocabulary has speaker tokens, the speaker embeddings are their rows, as CDial-GPT2 adds
them through token_type_ids; elsewhere they are zero.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

import torch

from chatbot.errors import CheckpointError, first_line, last_line
from chatbot.model.config import XianliaoConfig
from chatbot.model.layer_types import repeat_layer_types
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer

SPEAKER_TOKENS = ("[speaker1]", "[speaker2]")
ACTIVATIONS = {"gelu_pytorch_tanh": "gelu_new", "gelu_fast": "gelu_new"}
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
_TRANSPOSED = re.compile(r"\.(qkv_proj|o_proj|up_proj|down_proj)\.weight$")
_BUFFERS = re.compile(r"\.attn\.(masked_)?bias$")


class ImportedModelError(CheckpointError):
    """A foreign checkpoint that cannot become one of our models."""


def to_config(settings: dict, tokenizer: DialogueTokenizer, layer_types: Sequence[str]) -> XianliaoConfig:
    """Our config from a GPT-2 config.json.

    Args:
        settings: Content of config.json.
        tokenizer: The folder's own.
        layer_types: Mixers, repeated until every layer has one.

    Raises:
        ImportedModelError: The model has something that ours has not.
    """
    kind = settings.get("model_type")
    if kind == "openai-gpt":
        raise ImportedModelError(
            "This is a GPT-1 model (openai-gpt): it normalises after its layers, which our model cannot do; import a"
            " GPT-2 one, for example CDial-GPT2 instead of CDial-GPT."
        )
    if kind != "gpt2":
        raise ImportedModelError(f"A model of type {kind!r} cannot be imported; give a GPT-2 folder or one of ours.")
    heads, width, layers = settings.get("n_head", 12), settings.get("n_embd", 768), settings.get("n_layer", 12)
    activation = settings.get("activation_function", "gelu_new")
    odd = [
        name
        for name, usual in {
            "scale_attn_weights": True,
            "scale_attn_by_inverse_layer_idx": False,
            "add_cross_attention": False,
            "tie_word_embeddings": True,
        }.items()
        if settings.get(name, usual) != usual
    ]
    if odd:
        raise ImportedModelError(f"This GPT-2 has an unusual {' and '.join(odd)}, which our model has not.")
    positions = settings.get("n_positions", settings.get("n_ctx", 1024))
    try:
        return XianliaoConfig(
            vocab_size=tokenizer.vocab_size,  # rows beyond it have no token
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
    except Exception as error:  # a missing key or the strict validators' many kinds
        raise ImportedModelError(f"This GPT-2 cannot be imported: {last_line(error)}") from None


def to_model(config: XianliaoConfig, tensors: dict[str, torch.Tensor], tokenizer: DialogueTokenizer):
    """Our model with GPT-2's tensors; parameters that GPT-2 has not are newly drawn.

    Raises:
        ImportedModelError: Tensors are missing, unknown or of another shape.
    """
    torch.manual_seed(0)
    model = XianliaoForCausalLM(config)
    ours = dict(_renamed(tensors))
    embedding = ours.get("token_embedding.weight")
    if embedding is None:
        raise ImportedModelError("The weights have no wte.weight; this is no GPT-2 language model.")
    if len(embedding) < tokenizer.vocab_size:
        raise ImportedModelError(
            f"The tokenizer has {tokenizer.vocab_size} tokens but the model {len(embedding)}; they do not belong together."
        )
    ours["token_embedding.weight"] = embedding = embedding[: tokenizer.vocab_size].contiguous()
    speakers = [tokenizer.id_of(token) for token in SPEAKER_TOKENS]
    known = None not in speakers
    ours["speaker_embedding.weight"] = embedding[speakers].clone() if known else torch.zeros_like(embedding[:2])
    ours["lm_head.weight"] = embedding
    expected = model.state_dict()
    for name in [name for name in ours if ".mixer." in name and name in expected]:
        if config.layer_types[int(name.split(".")[1])] != "softmax" and ours[name].shape != expected[name].shape:
            del ours[name]  # a mixer of other widths begins anew
    unknown = sorted(ours.keys() - expected.keys())
    odd = sorted(name for name in ours.keys() & expected.keys() if ours[name].shape != expected[name].shape)
    plain = all(kind == "softmax" for kind in config.layer_types)
    missing = sorted(name for name in expected.keys() - ours.keys() if plain or ".mixer." not in name)
    if unknown or odd or missing:
        what = [f"unknown {name}" for name in unknown[:1]]
        what += [f"{name} of shape {list(ours[name].shape)}" for name in odd[:1]]
        what += [f"no {name}" for name in missing[:1]]
        raise ImportedModelError(f"The weights do not fit this GPT-2's config.json: {', '.join(what)}.")
    model.load_state_dict(ours, strict=False)
    return model


def _renamed(tensors: dict[str, torch.Tensor]):
    for name, tensor in tensors.items():
        if name == "lm_head.weight" or _BUFFERS.search(name):
            continue
        name = name.removeprefix("transformer.")
        for theirs, mine in NAMES.items():
            if theirs.startswith("."):
                name = name.replace(theirs, mine)
            elif name.startswith(theirs):
                name = mine + name.removeprefix(theirs)
        # GPT-2's Conv1D holds its matrices as [in, out].
        yield name, (tensor.t() if _TRANSPOSED.search(name) else tensor).float().contiguous()


def read_bin(path: Path) -> dict[str, torch.Tensor]:
    """Tensors of a pytorch_model.bin, unpickled with weights_only: nothing in it is run.

    Raises:
        ImportedModelError: The file is damaged or holds more than tensors.
    """
    try:
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # pickle, zip and torch errors
        raise ImportedModelError(f"{path} cannot be read as plain tensors ({first_line(error)}).") from None
    if not isinstance(tensors, dict) or not all(
        isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in tensors.items()
    ):
        raise ImportedModelError(f"{path} holds more than named tensors; give the state_dict of the model alone.")
    return tensors
