"""Results of an evaluation on disk, so that a stopped evaluation continues where it was."""

from __future__ import annotations

import ast
import hashlib
import json
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import cast

import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import FileError
from chatbot.model.protocol import DialogueModel
from chatbot.storage import append_row, resume_rows

FOLDER = "replies"
"""Folder of the cache files within the folder of the report."""

PACKAGE = Path(__file__).resolve().parents[1]
DECIDING = (
    "text",
    "native",
    "model",
    "similarity",
    "decoding",
    "checkpoint",
    "chat",
    "evaluation/answering.py",
    "evaluation/references.py",
    "evaluation/quality.py",
)
"""Folders and modules of `chatbot` on whose code a cached number depends."""


class ResultCache:
    """Cache files of one report folder, one for each kind of result.

    The name of a file ends with a hash of everything that its content depends on: the code, the model, the settings and
    the data. A file with the right name therefore holds the right results, and a changed input starts a new file.

    Args:
        folder: Folder of the report; the files are in `replies/` within it.

    Raises:
        FileError: `replies/` is a link, which could lead to a folder with other files.
    """

    def __init__(self, folder: Path):
        self.folder = folder / FOLDER
        if self.folder.is_symlink():  # the cache truncates and removes files in it
            raise FileError(f"{self.folder} is a link. Remove it, or give another --output.")
        self.folder.mkdir(parents=True, exist_ok=True)
        self._used: set[Path] = set()

    def open(self, name: str, identity: object) -> CacheFile:
        """Return the cache file for a result, with the rows that a former run has written.

        Args:
            name: Readable beginning of the file name.
            identity: JSON value of the inputs that the result depends on, besides the code.
        """
        digest = hash_of({"code": code_hash(PACKAGE), "name": name, "identity": identity})[:10]
        path = self.folder / f"{re.sub('[^A-Za-z0-9.-]+', '-', name).strip('-')[:60]}-{digest}.jsonl"
        self._used.add(path)
        return CacheFile(path)

    def remove_unused(self) -> None:
        """Delete the cache files that this evaluation did not open."""
        for path in self.folder.glob("*.jsonl"):
            if path not in self._used:
                path.unlink()


class CacheFile:
    """A file of the cache in JSON Lines format, one result per line.

    A damaged line and all lines after it are dropped when the file is opened.

    Attributes:
        rows: Rows in the order in which they were added.

    Raises:
        FileError: The file cannot be opened, is not a regular file, or is a link that leaves its folder.
    """

    def __init__(self, path: Path):
        self.path, self.rows = path, resume_rows(path)

    def add(self, row: dict) -> None:
        """Append a row to the file and to `rows`."""
        append_row(self.path, row)
        self.rows.append(row)


def hash_of(value: object) -> str:
    """Return the SHA-256 of a JSON value."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "replace")).hexdigest()


@lru_cache(maxsize=4)
def code_hash(package: Path) -> str:
    """Return a hash of the code that cached numbers depend on; comments, docstrings and formatting do not change it.

    Args:
        package: Folder of the package `chatbot`.
    """
    digest = hashlib.sha256()
    for path in _deciding_files(package):
        digest.update(path.relative_to(package).as_posix().encode())
        digest.update(_meaning(path))
    return digest.hexdigest()


def _deciding_files(package: Path) -> Iterator[Path]:
    for name in DECIDING:
        path = package / name
        files = [path] if path.is_file() else path.rglob("*")
        yield from sorted(file for file in files if file.suffix in (".py", ".c", ".h"))


def _meaning(path: Path) -> bytes:
    """Return the syntax tree of a Python file without docstrings, or the bytes of another file."""
    if path.suffix != ".py":
        return path.read_bytes()
    tree = ast.parse(path.read_bytes())
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list):
            node.body = [part for part in body if not _is_text(part)]  # type: ignore[attr-defined]  # a node with a body
    return ast.dump(tree).encode()


def _is_text(node: ast.AST) -> bool:
    """Whether a statement is a lone string: a docstring of a module, class, function or constant."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def identity_of(bot: Chatbot) -> dict:
    """Return what a bot's numbers depend on besides its settings: weights, tokenizer, context length and arithmetic."""
    native = bot.model.native
    return {
        "model": _hash_model(bot.model),
        "tokenizer": hash_of(bot.tokenizer.to_json()),
        "context_tokens": bot.context_tokens,
        "device": bot.model.device.type,
        "native": None if native is None else ("int8" if native.int8 else "float"),
    }


def identity_of_ranker(bot: Chatbot, settings: ReplySettings) -> dict:
    """Return what the choice among candidates depends on besides the bot; empty if there is only one candidate."""
    if settings.candidates == 1:
        return {}
    ranker = bot.ranker(settings)
    vectors = None if ranker.vectors is None else hashlib.sha256(ranker.vectors.vectors.tobytes()).hexdigest()
    return {"vectors": vectors, "backward": None if ranker.backward is None else _hash_model(ranker.backward)}


def _hash_model(model: DialogueModel) -> str:
    """Return a hash of a model's config and parameters."""
    config: object = model.config
    to_dict = getattr(config, "to_dict", None)
    settings = to_dict() if callable(to_dict) else vars(config)
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, parameter in cast(torch.nn.Module, model).named_parameters():
        digest.update(name.encode())
        digest.update(str(parameter.dtype).encode())
        digest.update(parameter.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
