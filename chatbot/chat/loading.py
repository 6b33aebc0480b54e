"""Loading of the parts of a bot from a checkpoint folder."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

from chatbot.chat.ranking import reads_backwards
from chatbot.checkpoint.folder import BACKWARD, load_model
from chatbot.checkpoint.location import GENERATION, TRAINING
from chatbot.decoding.batch import make_native
from chatbot.decoding.rules.thinking import CLOSE, OPEN, ThinkingTokens
from chatbot.decoding.settings import ReplySettings, settings_from
from chatbot.errors import CheckpointError
from chatbot.model.device import pick_device
from chatbot.model.protocol import DialogueModel
from chatbot.storage import read_json
from chatbot.text.dialogue import DialogueError
from chatbot.text.tokenizer import DialogueTokenizer


def load_parts(path: Path, device: str, dtype: str) -> tuple[DialogueModel, DialogueTokenizer, ReplySettings]:
    """Return model, tokenizer and decoding settings of a folder; arguments as for `Chatbot.from_pretrained`.

    Raises:
        CheckpointError, TokenizerError: A file of the checkpoint is missing or damaged.
    """
    int8 = dtype == "int8"
    device, torch_dtype = pick_device("cpu" if int8 and device == "auto" else device, "float32" if int8 else dtype)
    settings = settings_from(read_json(path / GENERATION) if (path / GENERATION).is_file() else {})
    tokenizer = DialogueTokenizer.load(path)
    if tokenizer.marks is not None and tokenizer.marks.has_switch and not (path / TRAINING).is_file():
        # models trained with this package learn replies without a thinking block
        settings = replace(settings, thinking="off") if settings.thinking == "plain" else settings
    model = load_model(path, device, torch_dtype)
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
            stacklevel=3,
        )
    return model, tokenizer, settings


def thinking_tokens(tokenizer: DialogueTokenizer) -> ThinkingTokens | None:
    """Return the tokens that open and close a thinking block, or None if a tag is not a single special token."""
    if tokenizer.marks is None:
        return None
    open_id, close_id = tokenizer.id_of(OPEN), tokenizer.id_of(CLOSE)
    if open_id not in tokenizer.special_ids or close_id not in tokenizer.special_ids:
        return None
    ask = tokenizer.marks.asks[True]
    return ThinkingTokens(open_id, close_id, open_id in ask and close_id not in ask)
