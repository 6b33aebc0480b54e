"""lccc:base and lccc:large, from a hub cache on disk of the same form as the real one."""

from __future__ import annotations

import gzip
import hashlib

import pytest

from chatbot.errors import FileError
from chatbot.text.prepared_set import load_manifest
from data_prep.cli import main
from data_prep.reading import hub


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Cache with a small LCCC-base; other files cannot be downloaded, because the tests are offline."""
    from huggingface_hub import constants

    folder = tmp_path / "cache" / "datasets--silver--lccc"
    snapshot = folder / "snapshots" / hub.REVISION
    snapshot.mkdir(parents=True)
    (folder / "blobs").mkdir()
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text(hub.REVISION)
    sums = {}
    for split, file in hub.FILES["lccc:base"].items():
        lines = "".join(f'["{split} 第 {number} 句", "好 的 {number}"]\n' for number in range(30))
        data = gzip.compress((lines + '["都 有 的", "一 样"]\n').encode(), mtime=0)
        sums[file] = hashlib.sha256(data).hexdigest()
        (folder / "blobs" / sums[file]).write_bytes(data)
        (snapshot / file).symlink_to(folder / "blobs" / sums[file])
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(hub, "SHA256", {name: sums[name] for name in hub.SHA256})
    return snapshot


def test_lccc_base_brings_its_own_splits(cache, tmp_path):
    assert main(["--input", "lccc:base", "--output", str(tmp_path / "set"), "--vocab-size", "400"]) == 0
    manifest = load_manifest(tmp_path / "set")
    assert {name: split["dialogues"] for name, split in manifest["splits"].items()} == {
        "train": 30,
        "valid": 30,
        "test": 31,
    }
    assert manifest["dropped"] == {"also_in_test": 2}


@pytest.mark.parametrize("split", ["train", "valid"])  # one whose sum is known here, one whose sum the hub knows
def test_another_file_under_the_name_is_refused(cache, tmp_path, capsys, split):
    path = cache / hub.FILES["lccc:base"][split]
    path.resolve().write_bytes(gzip.compress(b'["a", "b"]\n'))
    assert main(["--input", "lccc:base", "--output", str(tmp_path / "set")]) == 1
    assert "SHA-256" in capsys.readouterr().err
    assert not (tmp_path / "set").exists()


def test_a_failed_download_is_one_sentence(cache, capsys, tmp_path):
    assert main(["--input", "lccc:large", "--output", str(tmp_path / "set")]) == 1
    error = capsys.readouterr().err.strip()
    assert error.startswith("error: Cannot download lccc:large (")
    assert "lccc_large.jsonl.gz" in error
    with pytest.raises(FileError, match="Unknown corpus lccc:huge"):
        hub.fetch("lccc:huge")


def test_sums_and_revision_are_of_the_right_form():
    assert len(hub.REVISION) == 40
    assert all(len(value) == 64 and name in hub.FILES["lccc:base"].values() for name, value in hub.SHA256.items())
