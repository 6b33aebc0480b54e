"""Prepared sets: the folders of token ids that data_prep writes and training reads."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot.errors import FileError, first_line

if TYPE_CHECKING:
    import datasets

MANIFEST = "manifest.json"
_MANIFEST_KEYS = {"fingerprint", "splits", "sources", "tokenizer_hash"}


def is_prepared_set(path: Path) -> bool:
    """Whether a folder is a prepared set, from the keys of its manifest: other programs write a manifest.json too."""
    try:
        return json.loads((path / MANIFEST).read_text(encoding="utf-8")).keys() >= _MANIFEST_KEYS
    except (OSError, ValueError, AttributeError):
        return False


def load_manifest(folder: str | Path) -> dict:
    """manifest.json of a prepared set.

    Raises:
        FileError: It is missing or damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.exists():
        raise FileError(f"{folder} is no prepared set (no {MANIFEST}); make one with xianliao-prepare.")
    if not is_prepared_set(Path(folder)):
        raise FileError(f"{path} is damaged or not ours; prepare the set again, into another folder.")
    return json.loads(path.read_text(encoding="utf-8"))


def split_features() -> datasets.Features:
    """Columns of a prepared set's splits."""
    import datasets

    turns = datasets.List(datasets.List(datasets.Value("int32")))
    return datasets.Features({"turns": turns, "units": datasets.Value("int32")})


def load_split(folder: str | Path, split: str) -> datasets.Dataset:
    """The memory-mapped `train` or `valid` split of a prepared set.

    Raises:
        FileError: It is missing or damaged.
    """
    manifest = load_manifest(folder)
    import datasets

    try:
        if not manifest["splits"][split]["dialogues"]:  # datasets cannot read back what has no rows
            return datasets.Dataset.from_dict({"turns": [], "units": []}, features=split_features())
        return datasets.load_from_disk(str(Path(folder) / split))
    except Exception as error:  # datasets and pyarrow raise many kinds
        raise FileError(
            f"The {split} split of {folder} cannot be read ({first_line(error)}); prepare the set again."
        ) from None
