"""Loading of the parts of a bot from a checkpoint folder."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

from chatbot.chat.options import MAX_HISTORY_TOKENS, MIN_HISTORY_TOKENS
from chatbot.chat.ranking import reads_backwards
from chatbot.checkpoint.folder import BACKWARD, load_model
from chatbot.checkpoint.location import GENERATION, TRAINING
from chatbot.decoding.batch import make_native
from chatbot.decoding.rules.thinking import CLOSE, OPEN, ThinkingTokens
from chatbot.decoding.settings import MAX_STORED_LIMIT_TOKENS, ReplySettings, ReplySettingsError, settings_from
from chatbot.errors import CheckpointError, XianliaoWarning, shown
from chatbot.model.device import pick_device
from chatbot.model.hf_chat_model import HfChatModel
from chatbot.model.protocol import DialogueModel
from chatbot.storage import read_json
from chatbot.text.dialogue import DialogueError
from chatbot.text.tokenizer import DialogueTokenizer

START_TOKENS, DELTA_TOKENS = 512, 128
"""t0 and delta of the EOS floor for a chat model of another project, whose folder records no floor."""


def load_parts(
    path: Path, device: str, dtype: str, context_tokens: int | None = None
) -> tuple[DialogueModel, DialogueTokenizer, ReplySettings]:
    """Return model, tokenizer and decoding settings of a folder; arguments as for `Chatbot.from_pretrained`.

    Raises:
        CheckpointError, TokenizerError: A file of the checkpoint is missing or damaged.
    """
    int8 = dtype == "int8"
    device, torch_dtype = pick_device("cpu" if int8 and device == "auto" else device, "float32" if int8 else dtype)
    generation = read_json(path / GENERATION) if (path / GENERATION).is_file() else {}
    settings_from(generation)  # reports a fault before the weights are read
    tokenizer = DialogueTokenizer.load(path)
    model = load_model(path, device, torch_dtype)
    if context_tokens is not None:
        limit_history(model, context_tokens)
    settings = settings_from(with_floor(generation, model) if isinstance(model, HfChatModel) else generation)
    if tokenizer.marks is not None and tokenizer.marks.has_switch and not (path / TRAINING).is_file():
        # models trained with this package learn replies without a thinking block
        settings = replace(settings, thinking="off") if settings.thinking == "plain" else settings
    if tokenizer.vocab_size != model.config.vocab_size:
        raise DialogueError(
            f"{path} has a tokenizer of {tokenizer.vocab_size} tokens but a model of {model.config.vocab_size};"
            " copy or train the checkpoint again."
        )
    if reads_backwards(model):
        raise CheckpointError(
            f"{path} reads dialogues backwards, to rank replies; put it into {BACKWARD}/ of a checkpoint folder."
        )
    if not make_native(model, int8) and int8:
        warnings.warn(
            "int8 needs the CPU, a C compiler, linear or sliding-window layers and no end head; using float32 instead.",
            XianliaoWarning,
            stacklevel=3,
        )
    return model, tokenizer, settings


def limit_history(model: DialogueModel, context_tokens: int) -> None:
    """Change the maximum length of the history.

    A chat model of another project reads at most half of its maximum length; our own models read at most as many tokens as
    in training.

    Args:
        model: The model.
        context_tokens: Maximum length of the history in tokens.

    Raises:
        CheckpointError: The length is out of range, or leaves too little room for a message beside the chat template.
    """
    if not MIN_HISTORY_TOKENS <= context_tokens <= MAX_HISTORY_TOKENS:
        raise CheckpointError(
            f"The history may have {MIN_HISTORY_TOKENS} to {MAX_HISTORY_TOKENS} tokens, got {context_tokens}."
        )
    config: Any = model.config
    if isinstance(model, HfChatModel):
        model.limit_history(context_tokens)
    else:
        config.context_tokens = min(context_tokens, config.context_tokens)


def with_floor(generation: dict[str, Any], model: HfChatModel) -> dict[str, Any]:
    """Return the content of a chat model's generation_config.json with an EOS floor, unless it has one.

    `max_reply_tokens`, or else transformers' `max_new_tokens`, is the limit, and the floor does not begin before it. Without
    either, the floor begins after `START_TOKENS`. A request may ask for a reply as long as the longest history, or as the
    limit of the folder; then the floor begins there. All of it is bounded by half of the model's maximum length.

    Raises:
        ReplySettingsError: `max_new_tokens` is not a number of tokens.
    """
    if {"floor_start_tokens", "floor_delta_tokens"} & generation.keys():
        return generation
    stored = generation.get("max_new_tokens")
    if stored is not None and (type(stored) is not int or stored < 1):
        raise ReplySettingsError(f"Decoding: max_new_tokens must be a whole number of at least 1, got {shown(stored)}.")
    room = min(model.max_tokens // 2, MAX_STORED_LIMIT_TOKENS)
    delta = max(1, min(DELTA_TOKENS, room // 6))
    start, longest = min(START_TOKENS, room - 2 * delta), room - 2 * delta
    limit = generation.get("max_reply_tokens", None if stored is None else min(stored, room))
    if type(limit) is int:
        start = max(start, min(limit, longest))
    most = max(start, min(model.config.context_tokens, longest))
    floor = {"floor_start_tokens": start, "floor_delta_tokens": delta, "floor_max_start_tokens": most}
    return {**generation, **floor, "max_reply_tokens": limit}


def thinking_tokens(tokenizer: DialogueTokenizer) -> ThinkingTokens | None:
    """Return the tokens that open and close a thinking block, or None if a tag is not a single special token."""
    if tokenizer.marks is None:
        return None
    open_id, close_id = tokenizer.id_of(OPEN), tokenizer.id_of(CLOSE)
    if open_id not in tokenizer.special_ids or close_id not in tokenizer.special_ids:
        return None
    ask = tokenizer.marks.asks[True]
    return ThinkingTokens(open_id, close_id, open_id in ask and close_id not in ask)
