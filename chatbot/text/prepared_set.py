"""Prepared sets: the folders of token ids that data_prep writes and training reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from chatbot.errors import FileError, first_line
from chatbot.storage import read_json

if TYPE_CHECKING:
    import datasets

MANIFEST = "manifest.json"
_MANIFEST_KEYS = {"fingerprint", "splits", "sources", "tokenizer_hash"}


def is_prepared_set(path: Path) -> bool:
    """Whether a folder is a prepared set, by the keys of its manifest: other programs write a manifest.json too."""
    try:
        return read_json(path / MANIFEST, FileError).keys() >= _MANIFEST_KEYS
    except FileError:
        return False


def load_manifest(folder: str | Path) -> dict[str, Any]:
    """Return the manifest of a prepared set.

    Raises:
        FileError: The manifest is missing or damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise FileError(f"{folder} is not a prepared set: it has no {MANIFEST}. Make one with xianliao-prepare.")
    if not is_prepared_set(Path(folder)):
        raise FileError(
            f"{path} is damaged or was written by another program. Prepare the set again, in another folder."
        )
    return read_json(path, FileError)


def split_features() -> datasets.Features:
    """Return the columns of a split: the token ids of each turn, and the number of units (see `count_units`)."""
    import datasets

    turns = datasets.List(datasets.List(datasets.Value("int32")))
    return datasets.Features({"turns": turns, "units": datasets.Value("int32")})


def load_split(folder: str | Path, split: str) -> datasets.Dataset:
    """Return a split of a prepared set, mapped into memory.

    Args:
        folder: The prepared set.
        split: `train`, `valid` or `test`.

    Raises:
        FileError: The split is missing or damaged.
    """
    manifest = load_manifest(folder)
    import datasets

    try:
        if not manifest["splits"][split]["dialogues"]:  # datasets cannot load a dataset without rows
            return datasets.Dataset.from_dict({"turns": [], "units": []}, features=split_features())
        return datasets.Dataset.load_from_disk(str(Path(folder) / split))
    except Exception as error:  # datasets and pyarrow raise many kinds
        raise FileError(
            f"Cannot read the {split} split of {folder} ({first_line(error)}). Prepare the set again."
        ) from None
