"""Models of the Hugging Face hub by name: `owner/name` or `owner/name@revision`; needs no torch.

A model is downloaded only because a user named it, and only the files that are read: weights as safetensors, settings
and tokenizer, never pickles or code. The first start records the commit of the revision, and later starts use the files
of this commit without asking the hub, so a restart never changes the model. `@main` asks the hub for the newest commit.

The files are in the hub's cache. HF_HOME moves it, HF_ENDPOINT names a mirror, HF_HUB_OFFLINE=1 forbids the network.
"""

from __future__ import annotations

import re
import shutil
import sys
from collections.abc import Callable, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from pathlib import Path
from typing import TypeVar

from chatbot.checkpoint.location import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    CONFIG,
    GENERATION,
    LOCAL,
    SHARDS,
    TRAINING,
    WEIGHTS,
)
from chatbot.errors import CheckpointError, first_line, shown
from chatbot.language.translation import translate
from chatbot.storage import check_headers, is_file_name, read_json
from chatbot.text.tokenizer_file import TOKENIZER_FILE
from chatbot.text.wordpiece import VOCABULARY_FILE

TOKENIZERS = (TOKENIZER_FILE, VOCABULARY_FILE)
MODEL_FILES = (
    *(CONFIG, GENERATION, WEIGHTS, SHARDS, "model-*-of-*.safetensors"),
    *("tokenizer_config.json", "chat_template.jinja", *TOKENIZERS),
)
FILES = (
    *(*MODEL_FILES, ADAPTER_CONFIG, ADAPTER_WEIGHTS, TRAINING, "vectors.safetensors"),
    *(f"backward/{name}" for name in MODEL_FILES),
)
"""Patterns of the files that are downloaded."""

_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}(@[\w./-]{1,200})?", re.ASCII)
"""Names with two dots in a row, which could lead out of the cache, are not allowed by the hub or by git either."""
Result = TypeVar("Result")


def is_hub_name(checkpoint: str | Path) -> bool:
    """Whether a checkpoint is the name `owner/name` of a model of the hub, and not a folder of this machine.

    A name with a revision is one unless it exists as a path. A name without revision is not one if the folder `owner`
    exists here or is in `LOCAL`. A `Path` is never one.
    """
    if not isinstance(checkpoint, str) or not _NAME.fullmatch(checkpoint):
        return False
    path = Path(checkpoint)
    return ("@" in checkpoint and not path.exists()) or not (path.parent.exists() or path.parts[0] in LOCAL)


def with_revision(checkpoint: str | Path, revision: str | None) -> str | Path:
    """Return the name of a checkpoint with a revision of the hub: a branch, tag or commit.

    Raises:
        CheckpointError: The checkpoint is a folder, or has a revision already.
    """
    if revision is None:
        return checkpoint
    name = f"{checkpoint}@{revision}"
    if Path(checkpoint).exists() or not is_hub_name(name):
        raise CheckpointError(
            f"--revision {shown(revision)} needs a model of the hub as OWNER/NAME without @REVISION, not {checkpoint}."
        )
    return name


@lru_cache
def fetch(checkpoint: str) -> Path:
    """Return the folder of a model of the hub in the cache, after downloading it if it is not complete there.

    One line on stderr says which commit is used.

    Args:
        checkpoint: `owner/name`, or `owner/name@revision`.

    Raises:
        CheckpointError: The hub cannot be reached, or the model cannot be downloaded or used.
    """
    name, _, revision = checkpoint.partition("@")
    cached = None if revision == "main" else find_cached(name, revision or "main")
    path = cached or _download(name, revision or "main")
    advice = f"pin it with {name}@{path.name}" if cached is None else f"{name}@main asks the hub for a newer one"
    print(translate(f"{name}: using commit {path.name} in {path.parent}; {advice}"), file=sys.stderr)
    return path


def find_cached(name: str, revision: str) -> Path | None:
    """Return the folder of a model in the hub's cache, or None if it is missing or incomplete."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=list(FILES), local_files_only=True))
    except (LocalEntryNotFoundError, ValueError):
        return None
    if not (path / SHARDS).is_file():
        return path if (path / WEIGHTS).is_file() or (path / ADAPTER_WEIGHTS).is_file() else None
    shards = read_json(path / SHARDS).get("weight_map")
    complete = isinstance(shards, dict) and all((path / str(shard)).is_file() for shard in shards.values())
    return path if complete else None


def name_of(folder: Path) -> str:
    """Return the name of a checkpoint folder: `owner/name` in the hub's cache, else the name of the folder."""
    repository = folder.parent.parent.name
    if folder.parent.name == "snapshots" and repository.startswith("models--"):
        return repository.removeprefix("models--").replace("--", "/", 1)
    return folder.name


def reference_to(folder: Path) -> str:
    """Return the name by which adapters find a base model: `owner/name` in the hub's cache, else the whole path."""
    return name if "/" in (name := name_of(folder)) else str(folder.resolve())


def _download(name: str, revision: str) -> Path:
    """Download a model after checking that its weights can be used and fit on the disk.

    Raises:
        CheckpointError: See `fetch`.
    """
    from huggingface_hub import HfApi, snapshot_download

    def get(revision: str, *patterns: str) -> Path:
        path = Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns)))
        if path.parent.name != "snapshots" or not is_file_name(path.name):
            raise ValueError(f"the commit {shown(path.name)} is not a name")
        return path

    check_headers()
    info = _explained(name, revision, lambda: HfApi().model_info(name, revision=revision, files_metadata=True))
    sizes = {file.rfilename: file.size or 0 for file in info.siblings or []}
    path = _explained(name, revision, lambda: get(revision, CONFIG, ADAPTER_CONFIG))
    _check_files(name, path, sizes)
    missing = sum(
        size
        for file, size in sizes.items()
        if any(fnmatchcase(file, pattern) for pattern in FILES) and not (path / file).is_file()
    )
    free = shutil.disk_usage(path).free
    if missing > free:
        raise CheckpointError(
            f"Cannot download {name}: it needs {missing / 1e9:.1f} GB, and {path.parent} has {free / 1e9:.1f} GB left."
            " Free some space, or set HF_HOME to a folder on another disk."
        )
    return _explained(name, revision, lambda: get(path.name, *FILES))


def _check_files(name: str, path: Path, sizes: Mapping[str, int]) -> None:
    """Check that a model is of a supported kind, before its weights are downloaded.

    Args:
        name: Name of the model.
        path: Folder with its config.
        sizes: Bytes of all its files.

    Raises:
        CheckpointError: The model is of another kind.
    """
    if not {WEIGHTS, SHARDS, ADAPTER_WEIGHTS} & sizes.keys():
        kinds = {"GGUF": (".gguf",), "pickled": (".bin", ".pt", ".pth")}
        other = [kind for kind, ends in kinds.items() if any(file.endswith(ends) for file in sizes)]
        reason = f"only {' and '.join(other)} files" if other else "no weights"
        raise CheckpointError(
            f"{name} has {reason}. Name a model whose weights are safetensors files, usually the original of {name}."
        )
    if not set(TOKENIZERS) & sizes.keys():
        raise CheckpointError(f"{name} has neither {' nor '.join(TOKENIZERS)}. Name a model with a tokenizer.json.")
    if (path / CONFIG).is_file() and ADAPTER_CONFIG not in sizes:
        from chatbot.model.hf_chat_model import MODEL_TYPES  # imports torch, which takes less time than a download

        kind, known = read_json(path / CONFIG).get("model_type"), ("xianliao", "gpt2", *MODEL_TYPES)
        if kind not in known:
            raise CheckpointError(f"{name} is of type {shown(kind)}. Supported are {', '.join(known)}.")


def _explained(name: str, revision: str, call: Callable[[], Result]) -> Result:
    """Return what a call of the hub's client returns.

    Raises:
        CheckpointError: The call failed; the message says why.
    """
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    try:
        return call()
    except errors.GatedRepoError:
        message = f"{name} is gated. Accept its terms on {hub}/{name}, then log in: hf auth login."
    except errors.RepositoryNotFoundError:
        message = (
            f"{hub} has no model {name}, or it is private, and this machine has no such folder. Check the name, or log in:"
            " hf auth login."
        )
    except errors.RevisionNotFoundError:
        message = f"{name} has no revision {shown(revision)}. Give a branch, a tag or a commit."
    except Exception as error:  # the client raises exceptions of several libraries
        if not _is_about_connection(error):
            raise CheckpointError(
                f"Cannot download {name} ({first_line(error)}). Try again; files that are complete are kept."
            ) from None
        reason = "HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else f"{hub} cannot be reached"
        message = (
            f"This machine has no folder {name}, and the model of this name cannot be downloaded: {reason}. Check the path,"
            " or connect to the network; HF_ENDPOINT names a mirror."
        )
    raise CheckpointError(message)


def _is_about_connection(error: Exception) -> bool:
    """Whether an exception of the hub's client says that the hub cannot be reached."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    is_clients = type(error).__module__.partition(".")[0] in ("httpx", "httpx2")  # its name depends on the version
    return is_clients or isinstance(error, (LocalEntryNotFoundError, ConnectionError))
