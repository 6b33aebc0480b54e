"""LCCC from the Hugging Face hub: `lccc:base` and `lccc:large`, at a pinned revision, checked by SHA-256.

The files are those of the dataset repository `silver/lccc`, which the authors' own loader reads (Wang et al. 2020,
MIT). Files are downloaded only if one of these names is given, and stay in the hub's cache.
"""

from __future__ import annotations

from pathlib import Path

from tqdm import tqdm

from chatbot.errors import FileError, first_line
from chatbot.storage import check_headers
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
"""Hashes of the files known here; other files are compared with the hash that the hub records for the revision."""


def fetch(name: str) -> dict[str, Path]:
    """Return the files of a corpus by split, downloading those that are not in the hub's cache.

    Args:
        name: `lccc:base` or `lccc:large`.

    Raises:
        FileError: The name is unknown, a download fails, or a file has another hash.
    """
    if name not in FILES:
        raise FileError(f"Unknown corpus {name}. Use {' or '.join(FILES)}, or give a file.")
    return {split: _fetch_file(name, file) for split, file in FILES[name].items()}


def _fetch_file(name: str, file: str) -> Path:
    from huggingface_hub import hf_hub_download

    check_headers()
    try:
        path = Path(hf_hub_download(REPOSITORY, file, repo_type="dataset", revision=REVISION, tqdm_class=tqdm))
        expected = SHA256.get(file) or _recorded_sha256(file, path)
    except Exception as error:  # the hub's client raises exceptions of several libraries
        raise FileError(
            f"Cannot download {name} ({first_line(error)}). Check the network, or give the path of {file}."
        ) from None
    if sha256_of(path) != expected:
        raise FileError(f"{path} is not the {file} of {name}: its SHA-256 differs. Delete it and download it again.")
    return path


def _recorded_sha256(file: str, path: Path) -> str:
    """Return the hash that the hub records. Offline, read it from the hub's cache, whose file names are hashes."""
    from huggingface_hub import HfApi, RepoFile
    from huggingface_hub.constants import HF_HUB_OFFLINE

    if HF_HUB_OFFLINE:
        return path.resolve().name
    (info,) = HfApi().get_paths_info(REPOSITORY, file, repo_type="dataset", revision=REVISION)
    if not isinstance(info, RepoFile) or info.lfs is None:
        raise ValueError(f"the hub records no hash of {file}")
    return info.lfs.sha256
