"""What an evaluation has worked out so far, on disk, so that a killed one goes on where it was."""

from __future__ import annotations

import hashlib
import json
import os
import re
from pathlib import Path

import torch

from chatbot import __version__
from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings

FOLDER = "replies"


class Store:
    """Lines of JSON in a file of their own for each thing that is worked out; from a damaged line on they are dropped.

    The name of a file ends with the hash of everything its content depends on, so what is found is what is wanted, and
    another evaluation in the same folder begins anew.

    Args:
        folder: Of the report.
    """

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER
        self.folder.mkdir(parents=True, exist_ok=True)
        self._used: set[Path] = set()

    def open(self, name: str, identity: object) -> Lines:
        """What there is of `name`, to read and to go on with."""
        digest = hash_of({"version": __version__, "name": name, "identity": identity})[:10]
        path = self.folder / f"{re.sub('[^A-Za-z0-9.-]+', '-', name).strip('-')[:60]}-{digest}.jsonl"
        self._used.add(path)
        return Lines(path)

    def remove_others(self) -> None:
        """Removes what no part of this evaluation asked for."""
        for path in self.folder.glob("*.jsonl"):
            if path not in self._used:
                path.unlink()


class Lines:
    """The lines of one file."""

    def __init__(self, path: Path):
        self.path, self.rows = path, []
        whole = 0
        if path.is_file():
            for line in path.read_bytes().splitlines(keepends=True):
                try:
                    row = json.loads(line) if line.endswith(b"\n") else None
                except ValueError:
                    row = None
                if not isinstance(row, dict):
                    break
                self.rows.append(row)
                whole += len(line)
            os.truncate(path, whole)

    def add(self, row: dict) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row, ensure_ascii=False) + "\n")
        self.rows.append(row)


def hash_of(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


def identity_of(bot: Chatbot) -> dict:
    """What a bot's numbers depend on, its settings left out: weights, tokenizer, and how they are computed."""
    native = getattr(bot.model, "native", None)
    return {
        "model": _hash_model(bot.model),
        "tokenizer": hash_of(bot.tokenizer.to_json()),
        "context_tokens": bot.context_tokens,
        "device": bot.model.device.type,
        "native": None if native is None else ("int8" if native.int8 else "float"),
    }


def identity_of_ranker(bot: Chatbot, settings: ReplySettings) -> dict:
    """What the choice among candidates depends on beside the bot; nothing where there is no choice."""
    if settings.candidates == 1:
        return {}
    ranker = bot.ranker(settings)
    vectors = None if ranker.vectors is None else hashlib.sha256(ranker.vectors.vectors.tobytes()).hexdigest()
    return {"vectors": vectors, "backward": None if ranker.backward is None else _hash_model(ranker.backward)}


def _hash_model(model: torch.nn.Module) -> str:
    config = model.config.to_dict() if hasattr(model.config, "to_dict") else vars(model.config)
    digest = hashlib.sha256(json.dumps(config, sort_keys=True, default=str).encode())
    for name, parameter in model.named_parameters():
        digest.update(name.encode())
        digest.update(str(parameter.dtype).encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
