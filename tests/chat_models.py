"""Tiny chat models of other projects, as transformers writes them: random weights, a byte-level tokenizer, a template."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM

from chatbot.model.hf_chat_model import MODEL_TYPES

CHATML = """{%- if messages[0]['role'] == 'system' -%}
{{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else -%}
{{- '<|im_start|>system\\n你好。<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages if message.role != 'system' -%}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|im_start|>assistant\\n' }}{%- endif -%}"""

THINKING = CHATML.replace(
    "{{- '<|im_start|>assistant\\n' }}",
    "{{- '<|im_start|>assistant\\n' }}{%- if enable_thinking is defined and enable_thinking is false -%}"
    "{{- '<think>\\n\\n</think>\\n\\n' }}{%- endif -%}",
)
"""ChatML with Qwen3's switch: without thinking, the request for a reply has an empty block."""

OPENED = CHATML.replace("{{- '<|im_start|>assistant\\n' }}", "{{- '<|im_start|>assistant\\n<think>\\n' }}")
"""ChatML that opens a thinking block for every reply."""

LLAMA = """{{- bos_token }}
{%- if not date_string is defined %}{% set date_string = strftime_now("%d %b %Y") %}{% endif -%}
{{- "<|start_header_id|>system<|end_header_id|>\\n\\n" + date_string + "<|eot_id|>" }}
{%- for message in messages -%}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif -%}"""

GEMMA = """{{- bos_token }}
{%- if messages[0]['role'] == 'system' %}{{ raise_exception('System role not supported') }}{% endif -%}
{%- for message in messages -%}
{{- '<start_of_turn>' + ('model' if message['role'] == 'assistant' else message['role']) + '\n' -}}
{{- message['content'] | trim + '<end_of_turn>\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- '<start_of_turn>model\n' }}{%- endif -%}"""

# template, special tokens, tokens added as ordinary ones, tokenizer_config.json
KINDS = {
    "qwen2": (
        CHATML,
        ["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        ["<tool_call>", "<think>", "</think>"],
        {"eos_token": "<|im_end|>", "pad_token": "<|endoftext|>", "bos_token": None},
    ),
    "llama": (
        LLAMA,
        ["<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"],
        [],
        {"eos_token": "<|eot_id|>", "bos_token": {"content": "<|begin_of_text|>", "__type": "AddedToken"}},
    ),
}
KINDS["gemma"] = (
    GEMMA,
    ["<pad>", "<eos>", "<bos>", "<start_of_turn>", "<end_of_turn>"],
    [],
    {"eos_token": "<end_of_turn>", "bos_token": "<bos>", "pad_token": "<pad>"},
)
KINDS |= {"qwen3": KINDS["qwen2"], "mistral": KINDS["llama"], "gemma3_text": KINDS["gemma"]}
KINDS = {**dict.fromkeys(MODEL_TYPES, KINDS["qwen2"]), **KINDS}  # the other types have the template of Qwen here


def write_chat_model(folder: Path, texts: Iterable[str], kind: str = "qwen2", **changes) -> torch.nn.Module:
    """A random chat model of a kind in `folder`; returns transformers' own object."""
    folder.mkdir(parents=True)
    template, special, added, settings = KINDS[kind]
    tokenizer = byte_level_tokenizer(texts, special, added)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {"tokenizer_class": "PreTrainedTokenizerFast", **settings}
    if kind == "llama":  # both places are in use
        (folder / "chat_template.jinja").write_text(template, encoding="utf-8")
    else:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, ensure_ascii=False), encoding="utf-8")
    torch.manual_seed(0)
    config = AutoConfig.for_model(
        kind,
        **{
            "vocab_size": tokenizer.get_vocab_size() + 13,  # rows without a token, as Qwen has
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 8,
            "max_position_embeddings": 512,
            "initializer_range": 0.2,
            "tie_word_embeddings": kind.startswith(("qwen", "gemma")),
            "bos_token_id": None,
            "pad_token_id": None,
            "eos_token_id": tokenizer.token_to_id("<|im_end|>"),
            **changes,
        },
    )
    model = AutoModelForCausalLM.from_config(config).eval()
    model.save_pretrained(folder)
    return model


def byte_level_tokenizer(texts: Iterable[str], special: list[str], added: list[str]) -> Tokenizer:
    """Byte-level BPE as GPT-2's, Qwen's and Llama 3's are."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=600, initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in special])
    tokenizer.add_tokens([AddedToken(token, special=False, normalized=False) for token in added])
    return tokenizer
