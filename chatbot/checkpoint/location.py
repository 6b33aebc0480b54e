"""Location of checkpoint folders: on this machine, as package data, or a model of the hub; needs no torch."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from chatbot.errors import CheckpointError
from chatbot.storage import open_regular
from chatbot.text.tokenizer_file import TOKENIZER_FILE
from chatbot.text.wordpiece import VOCABULARY_FILE

DEFAULT = "default"
LOCAL = ("runs", "checkpoints")
"""First folders of paths that name a checkpoint of this machine even if it is missing, and never a model of the hub."""
NAMES_SHOWN = 3
"""Number of existing checkpoints that the message about a missing one names."""
CONFIG, WEIGHTS, SHARDS = "config.json", "model.safetensors", "model.safetensors.index.json"
ADAPTER_CONFIG, ADAPTER_WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PICKLED = "pytorch_model.bin"
GENERATION, TRAINING = "generation_config.json", "training.json"
GGUF = b"GGUF"
"""First bytes of a GGUF file."""

SAVE_AGAIN = "Save the model again with transformers, as safetensors."
USE_ORIGINAL = "Use the model that it was made from, whose weights are safetensors files."
"""Remedy for GGUF files: transformers reads them, but its `save_pretrained` refuses to write what it read."""


def locate(checkpoint: str | Path) -> Path:
    """Return the path of a checkpoint folder; `default` is the bundled checkpoint.

    A model of the hub (`chatbot.checkpoint.hub`) is downloaded if its files are not here yet.

    Raises:
        CheckpointError: A model of the hub cannot be downloaded.
    """
    from chatbot.checkpoint.hub import fetch, is_hub_name

    if str(checkpoint) == DEFAULT:
        return Path(__file__).resolve().parents[2] / "checkpoints" / DEFAULT
    return fetch(str(checkpoint)) if is_hub_name(checkpoint) else Path(checkpoint)


def resolve(checkpoint: str | Path) -> Path:
    """Return the folder of a checkpoint after checking that no file is missing.

    Args:
        checkpoint: A folder, `default` for the bundled checkpoint, or the name of a model of the hub.

    Raises:
        CheckpointError: The folder or a file in it does not exist, or a model of the hub cannot be downloaded.
    """
    from chatbot.checkpoint.hub import is_hub_name

    path = locate(checkpoint)
    if path.is_file() and (path.suffix == ".gguf" or read_beginning(path, len(GGUF)) == GGUF):
        raise CheckpointError(f"{path} is a GGUF file, which is not supported. {USE_ORIGINAL}")
    if not path.is_dir():
        near, folder, others = _nearest_checkpoints(path)
        is_of_hub = path.parts[0] not in LOCAL and is_hub_name(f"{checkpoint}@main")
        hint = "Check the path, or omit it for the bundled bot."
        if near:
            hint = f"Did you mean {near}?"
        elif others and is_of_hub:
            hint = f"Checkpoints in {folder}: {others}. To download the model of the hub, write {checkpoint}@main."
        elif others:
            hint = f"Checkpoints in {folder}: {others}."
        elif is_of_hub:
            hint = f"To download the model of the hub, write {checkpoint}@main."
        raise CheckpointError(f"Cannot find the checkpoint folder {path}. {hint}")
    if (path / ADAPTER_CONFIG).is_file():
        files = {ADAPTER_WEIGHTS: None, TOKENIZER_FILE: VOCABULARY_FILE}
    else:
        files = {CONFIG: None, WEIGHTS: SHARDS, TOKENIZER_FILE: VOCABULARY_FILE}
    missing = [
        name
        for name, alternative in files.items()
        if not (path / name).is_file() and not (alternative and (path / alternative).is_file())
    ]
    if missing == [WEIGHTS] and (path / PICKLED).is_file():
        from chatbot.checkpoint.folder import is_chat_model

        advice = (
            SAVE_AGAIN if is_chat_model(path) else f"Convert it once: python -m chatbot.checkpoint {path} NEW_FOLDER"
        )
        raise CheckpointError(f"{path} has its weights only in {PICKLED}. {advice}")
    if missing and any(path.glob("*.gguf")):
        raise CheckpointError(f"{path} holds a GGUF file, which is not supported. {USE_ORIGINAL}")
    if missing:
        raise CheckpointError(
            f"{path} is not a complete checkpoint: {' and '.join(missing)} missing. Copy or train it again."
        )
    return path


def read_beginning(path: Path, size: int) -> bytes:
    """Return the first bytes of a file; none if it cannot be read."""
    try:
        with open_regular(path) as file:
            return file.read(size)
    except OSError:
        return b""


def _nearest_checkpoints(path: Path) -> tuple[str | None, Path, str]:
    """Return the checkpoint whose name a missing path misspells, its nearest existing parent, and checkpoints there."""
    folder = next((parent for parent in path.parents if parent.is_dir()), Path())
    if path == Path(path.name) and get_close_matches(path.name, [DEFAULT], 1):
        return DEFAULT, folder, ""
    try:
        names = [entry.name for entry in folder.iterdir() if (entry / CONFIG).is_file()]
    except OSError:
        names = []
    near = get_close_matches(path.name, names, 1)
    return (
        str(folder / near[0]) if near else None,
        folder,
        ", ".join(get_close_matches(path.name, names, NAMES_SHOWN, 0)),
    )
