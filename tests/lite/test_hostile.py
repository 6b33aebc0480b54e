"""Damaged and forged weights files end with an error or a reply, and touch no foreign memory."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from xianliao_lite import Bot, LiteError

from tests.chatbot.native.test_sanitizers import sanitizer_libraries
from tests.conftest import ROOT
from tests.lite.building import QUICKLY, built_library, tiny_checkpoint, weights_file

pytestmark = pytest.mark.slow
SANITIZERS = ("-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=undefined")
FILES = 400


@pytest.fixture(scope="module")
def weights(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights")
    return weights_file(folder, tiny_checkpoint(folder / "tiny", tokenizer))


def test_damaged_files_touch_no_foreign_memory(weights, tmp_path):
    libraries = sanitizer_libraries()
    if libraries is None or sys.platform != "linux":
        pytest.skip("gcc with sanitizers is not installed")
    library = built_library(tmp_path, *SANITIZERS, kernels=QUICKLY)
    environment = {
        **os.environ,
        "LD_PRELOAD": libraries,
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:exitcode=77:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1:halt_on_error=1",
        "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'lite'}",
    }
    command = [sys.executable, "-m", "tests.lite.fuzz_file", str(library), str(weights), "0", str(FILES)]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=900)
    assert "Sanitizer" not in done.stderr, done.stderr[-6000:]
    assert "runtime error" not in done.stderr, done.stderr[-6000:]
    assert done.returncode == 0, done.stderr[-3000:]
    refused, opened, replied = map(int, done.stdout.split())
    assert refused > FILES / 4
    assert opened > FILES / 8
    assert replied > opened / 2


def test_a_damaged_file_is_refused_with_a_sentence(weights, library, tmp_path):
    content = weights.read_bytes()
    flipped = bytearray(content)
    flipped[len(content) // 2] ^= 1
    for data in (b"", b"x", content[:700], content[:-1], content + b"x", bytes(flipped), b"GGUF" + content[4:]):
        (tmp_path / "file").write_bytes(data)
        with pytest.raises(LiteError, match=r"\.$"):
            Bot(tmp_path / "file", library=library)
    with pytest.raises(LiteError, match="cannot be opened"):
        Bot(tmp_path, library=library)
