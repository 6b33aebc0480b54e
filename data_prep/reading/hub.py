"""LCCC from the Hugging Face hub: `lccc:base` and `lccc:large`, at a pinned revision, checked by SHA-256.

The files are those of the dataset repository `silver/lccc`, which the authors' own loader reads (Wang et al. 2020, MIT).
Nothing is fetched unless one of these names is given; what has been fetched is kept in the hub's cache.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from chatbot.errors import FileError, first_line
from data_prep.reading.files import sha256_of

REPOSITORY, REVISION = "silver/lccc", "5bd582fa28cd7143f2f9c852e08e23089d677c44"
FILES = {
    "lccc:base": {
        "train": "lccc_base_train.jsonl.gz",
        "valid": "lccc_base_valid.jsonl.gz",
        "test": "lccc_base_test.jsonl.gz",
    },
    "lccc:large": {"train": "lccc_large.jsonl.gz"},
}
SHA256 = {
    "lccc_base_train.jsonl.gz": "2162e0ed923fba62329cabf7e1493fbe59248afc94a62508e4abdea61e624627",
    "lccc_base_test.jsonl.gz": "cf8757587bdb8f360cc94fc38baadf9e185bad65a26155527a8430c048676016",
}
"""Of the files whose sum is known here; the others are compared with the sum that the hub records for the revision."""


def fetch(name: str) -> dict[str, Path]:
    """The files of `lccc:base` or `lccc:large` by split, from the cache or the hub.

    Raises:
        FileError: There is no such corpus, it cannot be fetched, or a file is not what it should be.
    """
    if name not in FILES:
        raise FileError(f"There is no corpus {name}; use {' or '.join(FILES)}, or give a file.")
    return {split: _fetch(name, file) for split, file in FILES[name].items()}


def _fetch(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    try:
        path = Path(hf_hub_download(REPOSITORY, file, repo_type="dataset", revision=REVISION, tqdm_class=tqdm))
        expected = SHA256.get(file) or _recorded_sha256(file, path)
    except Exception as error:  # the hub's client raises those of several libraries
        raise FileError(
            f"{name} cannot be fetched ({first_line(error)}); check the network, or give the path of {file}."
        ) from None
    if sha256_of(path) != expected:
        raise FileError(f"{path} is not the {file} of {name} (another SHA-256); delete it and fetch it again.")
    return path


def _recorded_sha256(file: str, path: Path) -> str:
    """What the hub says the file should be; offline, the name that its cache gave the content, which is its sum."""
    from huggingface_hub import HfApi
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if not HF_HUB_OFFLINE:
        (info,) = HfApi().get_paths_info(REPOSITORY, file, repo_type="dataset", revision=REVISION)
        return info.lfs.sha256
    return path.resolve().name
