"""Parts of a checkpoint that rank candidate replies: token vectors and the backward model."""

from __future__ import annotations

from pathlib import Path

from chatbot.checkpoint.folder import BACKWARD, load_model
from chatbot.decoding.rerank import Ranker
from chatbot.errors import CheckpointError
from chatbot.model.protocol import DialogueModel
from chatbot.similarity.token_vectors import VECTORS_FILE, TokenVectors
from chatbot.text.layouts import Layout
from chatbot.text.tokenizer import DialogueTokenizer


def load_ranker(checkpoint: Path | None, layout: Layout, vocab_size: int) -> Ranker:
    """Return a ranker with the vectors of a checkpoint folder, if it has any.

    Raises:
        XianliaoError: The vectors cannot be used.
    """
    if checkpoint is None or not (checkpoint / VECTORS_FILE).is_file():
        return Ranker(layout)
    return Ranker(layout, TokenVectors.load(checkpoint, vocab_size))


def load_backward(checkpoint: Path | None, tokenizer: DialogueTokenizer, device: str) -> DialogueModel | None:
    """Return the backward model of a checkpoint folder, or None without one.

    Raises:
        CheckpointError: The backward model cannot be used.
    """
    if checkpoint is None or not (checkpoint / BACKWARD).is_dir():
        return None
    folder = checkpoint / BACKWARD
    model = load_model(folder, device)
    if not reads_backwards(model):
        raise CheckpointError(f"{folder} is not a backward model; train it with xianliao-train --direction backward.")
    if DialogueTokenizer.load(folder).to_json() != tokenizer.to_json():
        raise CheckpointError(
            f"{folder} and {checkpoint} have different tokenizers; train both on the same prepared sets."
        )
    return model


def reads_backwards(model: DialogueModel) -> bool:
    """Whether a model reads dialogues in reverse order."""
    return model.config.direction == "backward"
