"""The prebuilt library is used without a compiler; one that is damaged, foreign or open to others is not loaded."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from pathlib import Path

import pytest
import torch

from chatbot import Chatbot
from chatbot.decoding.batch import make_native, start_batch
from chatbot.native import library, prebuilt
from chatbot.native.building import Target, build_prebuilt
from chatbot.native.prebuilt import MANIFEST, SYSTEMS
from tests.lite.building import tiny_checkpoint

SYSTEM = SYSTEMS.get((sys.platform, platform.machine()))
pytestmark = pytest.mark.skipif(
    SYSTEM not in ("linux-x86_64", "linux-aarch64") or shutil.which("gcc") is None, reason="builds with gcc on Linux"
)
OF_GCC = {
    "linux-x86_64": {
        "base": ("-march=x86-64", "-O1"),
        "avx2": ("-march=x86-64-v3", "-O1"),
        "avx512": ("-march=x86-64-v4", "-mavx512vnni", "-O1"),
    },
    "linux-aarch64": {"base": ("-march=armv8-a", "-O1"), "dotprod": ("-march=armv8.2-a+dotprod", "-O1")},
}
MESSAGES = ("你好", "今天心情不太好", "哈哈")


@pytest.fixture(scope="module")
def built(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("package") / "prebuilt"
    build_prebuilt(str(SYSTEM), folder, ["gcc"], Target(None, OF_GCC[str(SYSTEM)]))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tokenizer, tmp_path_factory) -> Path:
    return tiny_checkpoint(tmp_path_factory.mktemp("checkpoint") / "tiny", tokenizer)


@pytest.fixture
def folder(built, tmp_path, monkeypatch) -> Path:
    """A copy of the prebuilt folder in place of the package's, and an empty cache folder."""
    copy = Path(shutil.copytree(built, tmp_path / "prebuilt"))
    monkeypatch.setattr(prebuilt, "FOLDER", copy)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(library, "FLAGS", (*library.FLAGS, "-O0"))  # the same bits, built in less than half of the time
    library.library.cache_clear()
    yield copy
    library.library.cache_clear()


def without_compiler(monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    library.library.cache_clear()


def tokens_of(checkpoint: Path, dtype: str) -> list[tuple[int, ...]]:
    bot = Chatbot.from_pretrained(checkpoint, dtype=dtype)
    assert bot.model.native is not None
    return [bot.respond([message], seed).token_ids for seed in range(4) for message in MESSAGES]


@pytest.mark.parametrize("dtype", ["int8", "float32"])
def test_without_a_compiler_the_bot_says_the_same(folder, checkpoint, monkeypatch, tmp_path, dtype):
    monkeypatch.setattr(prebuilt, "FOLDER", tmp_path / "none")
    expected = tokens_of(checkpoint, dtype)
    assert library.library()._name.startswith(str(tmp_path / "cache"))
    shutil.rmtree(tmp_path / "cache")
    monkeypatch.setattr(prebuilt, "FOLDER", folder)
    without_compiler(monkeypatch, tmp_path)
    assert tokens_of(checkpoint, dtype) == expected
    assert library.library()._name == str(folder / "xianliao.so")
    assert not (tmp_path / "cache").exists(), "nothing is compiled where a prebuilt library is"


def test_all_builds_of_the_library_give_the_same_bits(folder, checkpoint):
    compiled, tokens = library.library(), []
    best = compiled.xianliao_choose(99)
    assert best == compiled.xianliao_choose(best)
    for number in range(best, -1, -1):
        assert compiled.xianliao_choose(number) == number
        tokens.append(tokens_of(checkpoint, "int8"))
    assert all(each == tokens[0] for each in tokens)
    assert compiled.xianliao_choose(-5) == 0


@torch.inference_mode()
def test_the_rows_are_the_same_with_any_number_of_threads(folder, checkpoint):
    model, ids = Chatbot.from_pretrained(checkpoint).model, [[5, 9, 4, 7]] * 12
    logits = []
    for number in (1, 4):
        library.ctypes.c_int64.in_dll(library.library(), "xianliao_threads").value = number
        assert make_native(model, int8=True)
        logits.append(start_batch(model, len(ids)).read(ids, [[0] * 4] * 12))
    assert torch.equal(*logits)


def other_bytes(folder: Path) -> None:
    content = bytearray((folder / "xianliao.so").read_bytes())
    content[len(content) // 2] ^= 1
    (folder / "xianliao.so").write_bytes(content)


def changed(**values):
    def change(folder: Path) -> None:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
        (folder / MANIFEST).write_text(json.dumps({**manifest, **values}), encoding="utf-8")

    return change


def not_a_library(folder: Path) -> None:
    (folder / "xianliao.so").write_bytes(b"\x7fELF nothing else")
    prebuilt.write_manifest(folder / "xianliao.so", str(SYSTEM))


def link(folder: Path) -> None:
    (folder / "xianliao.so").rename(folder.parent / "elsewhere.so")
    (folder / "xianliao.so").symlink_to(folder.parent / "elsewhere.so")


FAULTS = {
    "damaged": (other_bytes, "damaged"),
    "of another system": (changed(system="macos-arm64"), "is for macos-arm64"),
    "of another version": (changed(sources="0" * 64), "another version"),
    "a library outside the folder": (changed(library="../elsewhere.so"), "cannot be loaded"),
    "a manifest without names": (lambda folder: (folder / MANIFEST).write_text("{}"), "is damaged"),
    "a manifest that is a list": (lambda folder: (folder / MANIFEST).write_text("[]"), "is damaged"),
    "a manifest that is not JSON": (lambda folder: (folder / MANIFEST).write_bytes(b"\xff{"), "is damaged"),
    "no manifest": (lambda folder: (folder / MANIFEST).unlink(), "cannot be loaded"),
    "not a library": (not_a_library, "cannot be loaded"),
    "a folder that others can write": (lambda folder: folder.chmod(0o777), "other users"),
    "a file that others can write": (lambda folder: (folder / "xianliao.so").chmod(0o666), "other users"),
    "a manifest that others can write": (lambda folder: (folder / MANIFEST).chmod(0o666), "other users"),
    "a link": (link, "other users"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_library_that_cannot_be_trusted_is_compiled_anew(folder, fault, tmp_path):
    change, words = FAULTS[fault]
    change(folder)
    with pytest.warns(UserWarning, match=words) as warned:
        compiled = library.library()
    assert [str(warning.message).count("Traceback") for warning in warned] == [0]
    assert "\n" not in str(warned[0].message)
    assert compiled._name.startswith(str(tmp_path / "cache"))


@pytest.mark.parametrize("fault", ["damaged", "of another version", "not a library"])
def test_without_a_compiler_torch_takes_over(folder, fault, checkpoint, monkeypatch, tmp_path):
    change, words = FAULTS[fault]
    change(folder)
    without_compiler(monkeypatch, tmp_path)
    with pytest.warns(UserWarning, match=words):
        bot = Chatbot.from_pretrained(checkpoint)
    assert bot.model.native is None
    assert bot.respond(["你好"], 0).token_ids is not None


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a file away")
def test_a_library_of_another_user_is_not_loaded(folder):
    os.chown(folder / "xianliao.so", 65534, 65534)
    with pytest.warns(UserWarning, match="other users"):
        assert library.library()._name != str(folder / "xianliao.so")


def test_switched_off_is_off(folder, monkeypatch):
    monkeypatch.setenv("XIANLIAO_NATIVE", "0")
    assert library.library() is None
