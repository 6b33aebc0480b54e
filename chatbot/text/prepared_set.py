"""Prepared sets: the folders of token ids that data_prep writes and training reads."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.errors import FileError, TokenizerError, first_line, shown
from chatbot.storage import is_file_name, open_regular, read_json
from chatbot.text.tokenizer import DialogueTokenizer

if TYPE_CHECKING:
    import datasets

MANIFEST = "manifest.json"
MAX_VALID_SHARE = 0.2
"""Maximum share of held-out dialogues that is advised: of a small set, the rest is needed for training."""
_Check = Callable[[Any], bool]
_MANIFEST: dict[str, _Check] = {
    "fingerprint": lambda value: isinstance(value, str),
    "tokenizer_hash": lambda value: isinstance(value, str),
    "sources": lambda value: _is_list_of(value, lambda item: isinstance(item.get("file"), str)),
    "splits": lambda value: (
        isinstance(value, dict) and _is_list_of([*value.values()], _is_split) and value.keys() >= {"train", "valid"}
    ),
}
"""Keys of a manifest that training and evaluation read, each with a check of its value."""


def _is_list_of(value: object, is_right: _Check) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) and is_right(item) for item in value)


def _is_split(split: dict[str, Any]) -> bool:
    count = split.get("dialogues")
    return type(count) is int and count >= 0 and isinstance(split.get("content_hash"), str)


def is_prepared_set(path: Path) -> bool:
    """Whether a folder is a prepared set, judged by keys: other programs write a manifest.json too."""
    try:
        return read_json(path / MANIFEST, FileError).keys() >= _MANIFEST.keys()
    except FileError:
        return False


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a prepared set.

    Raises:
        FileError: The manifest is missing or damaged, or a value has the wrong type.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise FileError(f"{folder} is not a prepared set: it has no {MANIFEST}. Make one with xianliao-prepare.")
    if not is_prepared_set(Path(folder)):
        raise FileError(
            f"{path} is damaged or was written by another program. Prepare the set again, in another folder."
        )
    manifest = read_json(path, FileError)
    if wrong := [name for name, is_right in _MANIFEST.items() if not is_right(manifest[name])]:
        raise FileError(f"{path} has an unusable value for {wrong[0]}. Prepare the set again, in another folder.")
    return manifest


def larger_valid_share(folder: str | Path, times: float) -> float | None:
    """Return the --valid-share that holds out `times` as many dialogues; None if it would leave too few to train on.

    Args:
        folder: Prepared set.
        times: Factor above 1.

    Raises:
        FileError: The folder is not a prepared set, or its manifest is damaged.
    """
    manifest = load_manifest(folder)
    train, valid = (manifest["splits"][name]["dialogues"] for name in ("train", "valid"))
    if not valid or any(source.get("for") == "valid" for source in manifest["sources"]):
        return None
    share = math.ceil(100 * times * valid / (train + valid)) / 100
    return share if share <= MAX_VALID_SHARE else None


def split_features() -> datasets.Features:
    """Return the columns of a split: the token ids of each turn, and the number of units (see `count_units`)."""
    import datasets

    turns = datasets.List(datasets.List(datasets.Value("int32")))
    return datasets.Features({"turns": turns, "units": datasets.Value("int32")})


def load_split(folder: str | Path, split: str) -> datasets.Dataset:
    """Return a memory-mapped split of a prepared set.

    Args:
        folder: The prepared set.
        split: `train`, `valid` or `test`.

    Raises:
        FileError: The split is missing or damaged, names a file outside its folder, or has ids that its tokenizer
            lacks.
        TokenizerError: The tokenizer of the set is missing or damaged.
    """
    manifest = load_manifest(folder)
    import datasets

    path = Path(folder) / split
    try:
        if not manifest["splits"][split]["dialogues"]:  # datasets cannot load a dataset without rows
            return datasets.Dataset.from_dict({"turns": [], "units": []}, features=split_features())
        _check_files(path)
        data = datasets.Dataset.load_from_disk(str(path))
        _check_rows(data.data, DialogueTokenizer.load(folder).vocab_size)
        return data
    except TokenizerError:
        raise
    except Exception as error:  # datasets and pyarrow raise many kinds
        raise FileError(
            f"Cannot read the {split} split of {folder} ({first_line(error)}). Prepare the set again."
        ) from None


def _check_files(path: Path) -> None:
    """Check that a split consists of regular files in its folder: `datasets` opens every path that state.json names.

    Raises:
        OSError, ValueError, LookupError, TypeError: The split has other files, or state.json is damaged.
    """
    for name in ("state.json", "dataset_info.json"):
        open_regular(path / name, path).close()
    for entry in read_json(path / "state.json", FileError)["_data_files"]:
        if not isinstance(entry["filename"], str) or not is_file_name(entry["filename"]):
            raise ValueError(f"state.json names the file {shown(entry['filename'])}")
        open_regular(path / entry["filename"], path).close()


def _check_rows(table: datasets.table.Table, vocab_size: int) -> None:
    """Check the columns of a split, and that its ids are ids of the tokenizer.

    Raises:
        ValueError: A column or an id is wrong.
    """
    import pyarrow as pa

    column = table.schema.field("turns").type
    is_nested = pa.types.is_list(column) and pa.types.is_list(column.value_type)
    if not is_nested or column.value_type.value_type != pa.int32() or table.schema.field("units").type != pa.int32():
        raise ValueError("its columns have other types than those of a prepared set")
    for chunk in [*table.column("turns").chunks, *table.column("units").chunks]:
        chunk.validate(full=True)  # the offsets lie within the file
    for chunk in table.column("turns").chunks:
        turns = chunk.flatten()
        ids = turns.flatten()
        if chunk.null_count or turns.null_count or ids.null_count:
            raise ValueError("a value is missing")
        low, high = (ids.to_numpy().min(), ids.to_numpy().max()) if len(ids) else (0, 0)
        if low < 0 or high >= vocab_size:
            raise ValueError(f"it has the token ids {low} to {high}, but the tokenizer has {vocab_size} tokens")
    units = table.column("units")
    if units.null_count or any(len(chunk) and chunk.to_numpy().min() < 0 for chunk in units.chunks):
        raise ValueError("a number of units is missing or negative")
