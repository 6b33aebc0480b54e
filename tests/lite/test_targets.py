"""The runtime for other systems: built with zig, looked into, and run where this machine or an emulator can."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from chatbot import Chatbot
from chatbot.native.building import TARGETS_OF_ZIG, build_program, build_with_zig
from tests.lite.building import tiny_checkpoint, weights_file

pytestmark = pytest.mark.slow
TALK = Path(__file__).with_name("talk.c")
MAGIC = {".so": b"\x7fELF", ".dylib": b"\xcf\xfa\xed\xfe", ".dll": b"MZ", ".wasm": b"\0asm"}
EMULATORS = {"linux-x86_64": (), "linux-aarch64": ("qemu-aarch64-static",), "windows-x86_64": ("wine64",)}
MESSAGES = ("你好", "今天心情不太好", "哈哈")


@pytest.fixture(scope="module", autouse=True)
def zig():
    pytest.importorskip("ziglang", reason="other systems' libraries are built with zig: pip install ziglang")


@pytest.mark.parametrize("name", TARGETS_OF_ZIG)
def test_the_library_of_each_system_is_linked_and_small(name, tmp_path):
    target = TARGETS_OF_ZIG[name]
    built = tmp_path / f"xianliao{target.suffix}"
    build_with_zig(name, built)
    content = built.read_bytes()
    assert content.startswith(MAGIC[target.suffix])
    assert b"xl_begin" in content
    assert len(content) < 500_000


@pytest.mark.parametrize("name", EMULATORS)
def test_programs_of_other_systems_print_the_tokens_of_python(name, tokenizer, tmp_path):
    emulator = EMULATORS[name]
    if emulator and shutil.which(emulator[0]) is None:
        pytest.skip(f"{emulator[0]} is not installed")
    checkpoint = tiny_checkpoint(tmp_path / "tiny", tokenizer)
    python, file = Chatbot.from_pretrained(checkpoint, dtype="int8"), weights_file(tmp_path, checkpoint)
    program = tmp_path / "talk.exe"
    build_program(name, TALK, program)
    said = tmp_path / "messages"
    said.write_text("".join(f"{message}\n" for message in MESSAGES), encoding="utf-8", newline="\n")
    command = [*emulator, str(program), str(file), "5", str(said)]
    environment = {**os.environ, "WINEPREFIX": str(tmp_path / "wine"), "WINEDEBUG": "-all", "LANG": "C.UTF-8"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    kernel, *lines = done.stdout.split("\n")
    print(kernel)
    expected = [python.respond([message], seed).token_ids for seed in range(5) for message in MESSAGES]
    assert [tuple(map(int, line.split()[:-1])) for line in lines if line.strip()] == expected
