"""Weights of a folder: their names and shapes are compared with config.json before memory is allocated for a model.

A config.json may ask for any number of layers of any width. The header of a safetensors file lists its tensors, so a
model is first built without memory (on torch's meta device) and must have exactly the stored tensors.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from math import inf
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from chatbot.checkpoint.location import CONFIG, SHARDS, WEIGHTS
from chatbot.errors import CheckpointError, first_line, shown
from chatbot.storage import read_header, read_json

MAX_SHARDS = 1_000

STATE_BYTES = 256 << 20
"""The state of one dialogue may be at most this many bytes larger than the weights."""

IGNORED = ".rotary_emb.inv_freq"
"""Suffix of the names of tensors that old versions of transformers stored and no version reads."""

MAX_WIDTH_RATIO = 64
"""Maximum ratio of a width inside a layer to `hidden_size`; with wider layers memory is out of proportion to the
weights."""

ZIP_START = b"PK\x03\x04"

_SHARD = re.compile(r"[\w.-]+\.safetensors", re.ASCII)
Shapes = dict[str, tuple[int, ...]]


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of a folder, whose index may name several.

    Raises:
        CheckpointError: The index is damaged or names other files.
    """
    if (folder / WEIGHTS).is_file() or not (folder / SHARDS).is_file():
        return [folder / WEIGHTS]
    names = read_json(folder / SHARDS).get("weight_map")
    if not isinstance(names, dict) or not names:
        raise CheckpointError(f"{folder / SHARDS} has no weight_map. Copy the folder again.")
    if wrong := [name for name in names.values() if not (isinstance(name, str) and _SHARD.fullmatch(name))]:
        raise CheckpointError(
            f"{folder / SHARDS} names {shown(wrong[0])}, which is not a safetensors file of the folder."
        )
    files = sorted(set(names.values()))
    missing = [name for name in files if not (folder / name).is_file()]
    if missing or len(files) > MAX_SHARDS:
        fault = f"{missing[0]} is missing" if missing else f"it names {len(files)} files"
        raise CheckpointError(f"{folder / SHARDS} cannot be used: {fault}. Copy the folder again.")
    return [folder / name for name in files]


def stored_shapes(files: Sequence[Path]) -> Shapes:
    """Return the shape of each tensor in safetensors files, from their headers.

    Raises:
        CheckpointError: A header is damaged or too long, a dtype is not supported, or the tensors need more memory than
            this machine has.
    """
    shapes: Shapes = {}
    for path in files:
        try:
            shapes |= read_header(path)
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path} cannot be read ({first_line(error)}). Copy or train the checkpoint again."
            ) from None
    size, memory = sum(path.stat().st_size for path in files), memory_bytes()
    if size > memory:
        raise CheckpointError(
            f"The weights in {files[0].parent} take {size / 1e9:.0f} GB, but this machine has {memory / 1e9:.0f} GB of"
            " memory. Use a smaller model."
        )
    return shapes


def memory_bytes() -> float:
    """Return the memory of this machine in bytes, or infinity if the operating system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return inf


def read_tensors(files: Iterable[Path]) -> dict[str, torch.Tensor]:
    """Return the tensors of safetensors files.

    Raises:
        CheckpointError: A file is damaged.
    """
    tensors: dict[str, torch.Tensor] = {}
    for path in files:
        try:
            tensors |= safetensors.torch.load_file(path)
        except Exception as error:  # safetensors raises several types
            raise CheckpointError(
                f"{path} cannot be read ({first_line(error)}). Copy or train the checkpoint again."
            ) from None
    return tensors


def read_torch_file(path: Path) -> Any:
    """Return the content of a file of torch.save, unpickled with weights_only: no code in the file is run.

    Raises:
        OSError: The file cannot be opened.
        ValueError: The file is damaged, holds more than plain data, or would need more memory than its size. The message
            replaces torch's, which advises to read the file without protection.
    """
    with path.open("rb") as file:
        is_zip = file.read(len(ZIP_START)) == ZIP_START  # as torch decides it; older files are plain pickles
    try:
        is_packed = is_zip and _is_packed(path)
        content = None if is_packed else torch.load(path, map_location="cpu", weights_only=True)
    except OSError:
        raise
    except Exception:  # pickle, zip and torch raise many types
        raise ValueError(f"{path.name} is damaged or holds more than plain data") from None
    if is_packed:
        raise ValueError(f"{path.name} holds repeated or compressed data")
    return content


def _is_packed(path: Path) -> bool:
    """Whether the entries of a zip file are compressed or share bytes: they may become thousands of times as large when
    they are read."""
    with zipfile.ZipFile(path) as archive:
        entries = archive.infolist()
    is_stored = all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)
    return not is_stored or sum(entry.file_size for entry in entries) > path.stat().st_size


def planned(build: Callable[[], torch.nn.Module], source: Path) -> Any:
    """Return a model without memory for its weights, to compare its shapes with the stored ones.

    Raises:
        CheckpointError: The settings do not make a model.
    """
    try:
        with torch.device("meta"):
            return build()
    except Exception as error:  # torch and transformers raise many types
        raise CheckpointError(
            f"{source / CONFIG} does not describe a model ({first_line(error)}). Copy the folder again."
        ) from None


def check_fit(model: Any, stored: Mapping[str, tuple[int, ...]], source: Path) -> None:
    """Check, before memory is allocated for the model, that a file has the names and shapes of the model's tensors.

    Args:
        model: From `planned`.
        stored: Result of `stored_shapes`. Names may lack the prefix that transformers adds in a model with a head.
        source: The folder, for the message.

    Raises:
        CheckpointError: The names or shapes differ.
    """
    tied = (getattr(model, "_tied_weights_keys", None) or {}) if model.config.tie_word_embeddings else {}
    expected = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    prefix = f"{model.base_model_prefix}."
    faults = []
    for name, shape in expected.items():
        actual = stored.get(name, stored.get(name.removeprefix(prefix)))
        if actual is None and name not in tied:
            faults.append(f"missing {name}")
        elif actual is not None and actual != shape:
            faults.append(f"mismatched {name}: {list(actual)} instead of {list(shape)}")
    known = {*expected, *(name.removeprefix(prefix) for name in expected)}
    faults += [f"unexpected {shown(name)}" for name in stored if name not in known and not name.endswith(IGNORED)]
    if faults:
        raise CheckpointError(
            f"The weights in {source} do not fit its config.json ({faults[0]}). Copy or train the checkpoint again."
        )


def check_state_size(state_bytes: int, model: torch.nn.Module, source: Path) -> None:
    """Check that the state of one dialogue is in proportion to the model: small weights can need a huge state.

    Raises:
        CheckpointError: The state is too large.
    """
    weight_bytes = sum(4 * parameter.numel() for parameter in model.parameters())
    if state_bytes > STATE_BYTES + weight_bytes:
        raise CheckpointError(
            f"One dialogue with the model in {source} needs {state_bytes / 1e9:.1f} GB of memory, more than its weights."
            " Use another model."
        )


def loading_problems(loading_info: dict[str, Any]) -> list[str]:
    """Describe one weight of each kind of problem (missing, unexpected, mismatched) in transformers' loading info."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return [f"{kind.removesuffix('_keys')} {min(map(str, loading_info[kind]))}" for kind in kinds if loading_info[kind]]
