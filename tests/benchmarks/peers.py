"""The peers of the speed comparison, at our size: transformers' GPT-2, a nanoGPT-style model, CTranslate2."""

from __future__ import annotations

import json
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from chatbot.model.config import XianliaoConfig
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer

VOCABULARY = 8192
SIZES = {"12M": (384, 6), "30M": (512, 8), "GPT-2": (768, 12)}


def ours(size: str = "12M", **changes) -> XianliaoForCausalLM:
    """Return our default model with as many multiplied parameters as GPT-2.

    Its feed-forward layers are narrower, because its mixers have more parameters.
    """
    width, layers = SIZES[size]
    torch.manual_seed(0)

    def build(feed_forward: int) -> XianliaoForCausalLM:
        shape = {"hidden_size": width, "num_hidden_layers": layers, "num_attention_heads": width // 64, "head_dim": 64}
        return XianliaoForCausalLM(
            XianliaoConfig(vocab_size=VOCABULARY, intermediate_size=feed_forward, **{**shape, **changes})
        )

    surplus = multiplied(build(4 * width)) - multiplied(gpt2(size))
    return build(4 * width - round(surplus / (2 * width * layers)))


def gpt2(size: str = "12M", positions: int = 32_768) -> GPT2LMHeadModel:
    """Return a GPT-2 of transformers without dropout."""
    width, layers = SIZES[size]
    torch.manual_seed(0)
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    ids = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    sizes = {"n_embd": width, "n_layer": layers, "n_head": width // 64, "n_positions": positions}
    return GPT2LMHeadModel(GPT2Config(vocab_size=VOCABULARY, **sizes, **dropouts, **ids))


def multiplied(model: nn.Module) -> int:
    """Return the number of parameters that multiply activations: all matrices except the input embeddings.

    The output head counts even if it is tied to the input embedding.
    """
    embeddings = ("token_embedding", "speaker_embedding", "position_embedding", "wte", "wpe")
    matrices = sum(
        p.numel() for name, p in model.named_parameters() if p.ndim == 2 and name.split(".")[-2] not in embeddings
    )
    return matrices + model.get_output_embeddings().weight.numel()


class NanoBlock(nn.Module):
    """Transformer block of `NanoGPT`."""

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.heads = heads
        self.norm, self.norm2 = nn.LayerNorm(width, bias=False), nn.LayerNorm(width, bias=False)
        self.qkv, self.out = nn.Linear(width, 3 * width, bias=False), nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, 4 * width, bias=False), nn.Linear(4 * width, width, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in self.qkv(self.norm(x)).chunk(3, 2))
        x = x + self.out(F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2))
        return x + self.down(F.gelu(self.up(self.norm2(x))))


class NanoGPT(nn.Module):
    """GPT like nanoGPT's: learned positions, SDPA, exact GELU, no biases, tied embeddings."""

    def __init__(self, size: str = "12M", positions: int = 4096):
        super().__init__()
        width, layers = SIZES[size]
        self.tokens, self.positions = nn.Embedding(VOCABULARY, width), nn.Embedding(positions, width)
        self.blocks = nn.ModuleList(NanoBlock(width, width // 64) for _ in range(layers))
        self.norm, self.head = nn.LayerNorm(width, bias=False), nn.Linear(width, VOCABULARY, bias=False)
        self.head.weight = self.tokens.weight

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1]))
        for block in self.blocks:
            x = block(x)
        logits = self.head(self.norm(x))
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())


def ctranslate2_generator(model: GPT2LMHeadModel, folder: Path, compute_type: str):
    """Return the same GPT-2 in CTranslate2 on one thread, or None if CTranslate2 is not installed."""
    try:
        import ctranslate2
    except ImportError:
        return None
    source, target = folder / "gpt2", folder / compute_type
    if not source.is_dir():
        model.save_pretrained(source)
        DialogueTokenizer.load("checkpoints/default").save(source)
    converter = ctranslate2.converters.TransformersConverter(str(source))
    converter.convert(str(target), quantization=compute_type, force=True)
    settings = json.loads((target / "config.json").read_text(encoding="utf-8"))
    known = {name: value for name, value in settings.items() if value is not None}  # CTranslate2 does not accept null
    named = {"unk_token": "[PAD]", **known}  # and needs an unknown token
    (target / "config.json").write_text(json.dumps(named), encoding="utf-8")
    return ctranslate2.Generator(str(target), device="cpu", intra_threads=1, inter_threads=1, compute_type=compute_type)
