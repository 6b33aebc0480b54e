"""Files of a saved state that were damaged or written by somebody else end in one sentence."""

from __future__ import annotations

import json
import zipfile

import pytest
import torch

from training.state.run_folder import ResumeError, check_folder, read_log, saved_steps
from training.state.saved_state import (
    OPTIMIZER,
    PROGRESS,
    load_optimizers,
    load_progress,
    remove_unfinished,
    save_state,
)

IDENTITY = {"settings": {"seed": 0}}


@pytest.fixture
def progress_file(tmp_path):
    save_state(tmp_path, 3, {"w": torch.ones(2)}, [{}], {"identity": IDENTITY, "best": None, "tokens": 7})
    return saved_steps(tmp_path)[-1] / PROGRESS


@pytest.mark.parametrize(
    "name", ["resume", "tensorboard", "resume/step-00000003", "resume/.step-00000004", "metrics.jsonl"]
)
def test_a_run_with_a_link_out_of_its_folder_is_refused_and_removes_nothing(progress_file, tmp_path, name):
    run, other = tmp_path / "run", tmp_path / "other"
    for folder in (other / "resume" / ".step-00000009", other / "tensorboard", other / "resume" / "step-00000003"):
        folder.mkdir(parents=True)
    (run / name).parent.mkdir(parents=True)
    (run / name).symlink_to(other / name.replace("4", "9"))
    for act in (lambda: check_folder(run, resume=True), lambda: remove_unfinished(run)):
        with pytest.raises(ResumeError, match="leads out"):
            act()
    assert (other / "resume" / ".step-00000009").is_dir()


def test_a_run_may_be_in_a_linked_folder(progress_file, tmp_path):
    (tmp_path.parent / f"{tmp_path.name}-linked").symlink_to(tmp_path)
    check_folder(tmp_path.parent / f"{tmp_path.name}-linked", resume=True)


def test_a_whole_state_is_read(progress_file, tmp_path):
    progress, identity = load_progress(tmp_path)
    assert (progress["step"], progress["tokens"], identity) == (3, 7, IDENTITY)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[" * 100_000, "recursion"),
        ('{"a": ' + "[" * 200 + "]" * 200 + "}", "nested deeper"),
        ('{"step": 1, "step": 2}', "'step' occurs twice"),
        (" " * (5 << 20), "larger than 4 MiB"),
        ("[1]", "cannot|Cannot"),
        ("null", "Cannot"),
        ("\0", "Cannot"),
    ],
)
def test_damaged_progress_is_refused(progress_file, tmp_path, text, words):
    progress_file.write_text(text)
    with pytest.raises(ResumeError, match=words):
        load_progress(tmp_path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sha256": {"/dev/zero": "0"}}, "not part of a saved state"),
        ({"sha256": {"../../evil": "0"}}, "not part of a saved state"),
        ({"sha256": ["model.safetensors"]}, "Cannot read"),
        ({"sha256": None, "tokens": "7"}, "tokens in progress.json has the wrong type"),
        ({"sha256": None, "step": [], "best": {}}, "step, best in progress.json"),
        ({"sha256": None, "identity": {"settings": 3}}, "identity in progress.json"),
        ({"sha256": None, "identity": None}, "Cannot read"),
    ],
)
def test_progress_of_the_wrong_form_is_refused(progress_file, tmp_path, changes, words):
    progress_file.write_text(json.dumps(json.loads(progress_file.read_text()) | changes))
    with pytest.raises(ResumeError, match=words) as refusal:
        load_progress(tmp_path)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(("saves", "rest"), [((3,), "the start"), ((2, 3), "step 2")])
@pytest.mark.parametrize(
    "damage", [b"", b"damaged", b"PK\x03\x04" + b"\0" * 99, b"\x80\x02cos\nsystem\n(S'false'\ntR.", None]
)
def test_a_damaged_optimizer_of_a_state_without_checksums_ends_in_a_sentence(tmp_path, damage, saves, rest):
    """torch's own message advises to read such a file without protection."""
    for step in saves:
        save_state(tmp_path, step, {"w": torch.ones(2)}, [{}], {"identity": IDENTITY, "best": None, "tokens": 7})
    newest = saved_steps(tmp_path)[-1]
    progress = json.loads((newest / PROGRESS).read_text())
    (newest / PROGRESS).write_text(json.dumps({name: value for name, value in progress.items() if name != "sha256"}))
    file = newest / OPTIMIZER
    file.write_bytes(file.read_bytes()[:-100] if damage is None else damage)
    assert load_progress(tmp_path)[0]["step"] == 3
    with pytest.raises(
        ResumeError, match=rf"optimizer\.pt is damaged.*Remove that folder; --resume .* from {rest}\."
    ) as refusal:
        load_optimizers(tmp_path, torch.nn.Linear(1, 1), [torch.optim.SGD([torch.ones(1)], 0.1)])
    assert "weights_only" not in str(refusal.value)
    assert "\n" not in str(refusal.value)


def pack(file, method, copies=1):
    """Write a torch file again with compressed entries, or with entries that share their bytes."""
    with zipfile.ZipFile(file) as archive:
        entries = [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    with zipfile.ZipFile(file, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
        large = max(archive.infolist(), key=lambda entry: entry.file_size)
        for number in range(1, copies):
            copy = zipfile.ZipInfo(f"{large.filename}{number}")
            for attribute in ("compress_type", "CRC", "file_size", "compress_size", "header_offset"):
                setattr(copy, attribute, getattr(large, attribute))
            archive.filelist.append(copy)


@pytest.mark.parametrize(
    "change",
    [
        lambda file: pack(file, zipfile.ZIP_DEFLATED),
        lambda file: pack(file, zipfile.ZIP_STORED, copies=4),
        lambda file: (
            pack(file, zipfile.ZIP_DEFLATED),
            file.write_bytes(file.read_bytes() + b"PK\x05\x06" + b"\0" * 9),
        ),
    ],
    ids=["compressed", "shared bytes", "compressed with a second end"],
)
def test_an_optimizer_that_needs_more_memory_than_its_size_is_not_read(tmp_path, monkeypatch, change):
    save_state(tmp_path, 3, {"w": torch.ones(2)}, [{"x": torch.zeros(1 << 18)}], {"identity": IDENTITY})
    change(saved_steps(tmp_path)[-1] / OPTIMIZER)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("the file is read"))
    words = r"optimizer\.pt (holds repeated or compressed data|is damaged).*Remove that folder; --resume"
    with pytest.raises(ResumeError, match=words):
        load_optimizers(tmp_path, torch.nn.Linear(1, 1), [torch.optim.SGD([torch.ones(1)], 0.1)])


def test_damaged_lines_of_a_log_are_skipped(tmp_path):
    lines = [b"[" * 100_000, b"\xff", b'{"step": true}', b'{"step": ' + b"9" * 4_000 + b"}", b'{"step": 3, "lo']
    (tmp_path / "metrics.jsonl").write_bytes(b'{"step": 2}\n' + b"\n".join(lines))
    assert read_log(tmp_path / "metrics.jsonl") == [{"step": 2}]
    assert read_log(tmp_path / "missing.jsonl") == []
