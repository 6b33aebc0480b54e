"""The runtime for other systems: built with zig, looked into, and run where this machine or an emulator can."""

from __future__ import annotations

import json
import os
import shutil
import struct
import subprocess
from pathlib import Path

import pytest
import torch

from chatbot import Chatbot
from chatbot.native.building import TARGETS_OF_ZIG, build_prebuilt, build_program, build_with_zig
from chatbot.native.library import call
from chatbot.native.prebuilt import MANIFEST, SYSTEMS
from tests.conftest import ROOT
from tests.lite.building import tiny_checkpoint, weights_file

pytestmark = pytest.mark.slow
TALK = Path(__file__).with_name("talk.c")
MAGIC = {".so": b"\x7fELF", ".dylib": b"\xcf\xfa\xed\xfe", ".dll": b"MZ", ".wasm": b"\0asm"}
LOAD = ROOT / "tests" / "chatbot" / "native" / "load.c"
SYSROOT = Path("/usr/aarch64-linux-gnu")
"""C library for arm64 of Debian's package libc6-arm64-cross."""

EMULATORS = {"linux-x86_64": (), "linux-aarch64": ("qemu-aarch64-static",), "windows-x86_64": ("wine64",)}
OUTSIDE_PATH = os.pathsep.join([os.environ.get("PATH", ""), "/usr/lib/wine"])  # where Debian puts wine64
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


@pytest.mark.parametrize("name", SYSTEMS.values())
def test_the_prebuilt_library_of_each_system_is_linked_and_small(name, tmp_path):
    built = build_prebuilt(name, tmp_path)
    content = built.read_bytes()
    assert content.startswith(MAGIC[TARGETS_OF_ZIG[name].suffix])
    assert all(symbol in content for symbol in (b"xianliao_read", b"xianliao_draw", b"xianliao_convolve_backward"))
    assert len(content) < 500_000
    assert json.loads((tmp_path / MANIFEST).read_text(encoding="utf-8"))["system"] == name
    if built.suffix == ".dylib":
        assert 0x1D in load_commands(content), "macOS for arm64 loads only signed code"


def load_commands(library: bytes) -> list[int]:
    """Return the load commands of a Mach-O file; 0x1d is the code signature."""
    (count,) = struct.unpack_from("<I", library, 16)
    offset, commands = 32, []
    for _ in range(count):
        command, size = struct.unpack_from("<II", library, offset)
        commands.append(command)
        offset += size
    return commands


@pytest.fixture(params=EMULATORS)
def name(request) -> str:
    """Each system whose programs run here; skips the others before anything is built for them."""
    for emulator in EMULATORS[request.param]:
        if shutil.which(emulator, path=OUTSIDE_PATH) is None:
            pytest.skip(f"{emulator} is not installed")
    return request.param


def emulated(name: str, program: Path, folder: Path, *arguments: object) -> str:
    """Run a program of another system and return its stdout."""
    emulator = [shutil.which(part, path=OUTSIDE_PATH) or part for part in EMULATORS[name]]
    command = [*emulator, str(program), *map(str, arguments)]
    environment = {**os.environ, "WINEPREFIX": str(folder / "wine"), "WINEDEBUG": "-all", "LANG": "C.UTF-8"}
    environment |= {"QEMU_LD_PREFIX": str(SYSROOT), "LD_LIBRARY_PATH": str(folder)}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, encoding="utf-8", timeout=600, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_prebuilt_library_of_each_system_computes_what_this_one_does(name, tmp_path):
    """Loaded at run time, as Python does it; `load.c` prints the same values for every build in the library."""
    if name == "linux-aarch64" and not SYSROOT.is_dir():
        pytest.skip("needs Debian's package libc6-arm64-cross")
    compiled = tmp_path / f"compiled{'.exe' if name.startswith('windows') else ''}"
    library = build_prebuilt(name, tmp_path / "prebuilt")
    build_program(name, LOAD, compiled, [])
    lines = [line.split(maxsplit=1) for line in emulated(name, compiled, tmp_path, library).splitlines()]
    print(name, "builds", [number for number, _ in lines])
    assert lines[-1][0] == "0"
    values = {values for _, values in lines}
    assert len(values) == 1
    assert list(map(float, values.pop().split())) == pytest.approx(expected_values(), abs=2e-6)


def expected_values() -> list[float]:
    """Return what load.c prints, by the library of this machine: tokens, floor, log p of each row, and a convolution."""
    vocabulary, rows, length, channels, size = 50, 4, 6, 8, 3
    logits = torch.tensor([((i * 37 + i // 7) % 41) / 8 for i in range(rows * vocabulary)])
    options = torch.tensor([0.7, 0.9], dtype=torch.float64)
    left = torch.tensor([1, 0.5] * 2, dtype=torch.float64)
    uniform = torch.tensor([(row + 0.5) / rows for row in range(rows)], dtype=torch.float64)
    tokens, log_probs = torch.empty(2, rows, dtype=torch.int64), torch.empty(rows, dtype=torch.float64)
    tensors = [logits, logits, options, left, uniform, tokens[0], tokens[1], log_probs]
    assert not call("xianliao_draw", tensors, (rows, vocabulary, 2, 1))
    x = torch.tensor([(i * 13 % 29) / 16 for i in range(length * channels)])
    taps = torch.tensor([(i * 5 % 11) / 8 for i in range(size * channels)])
    y = torch.empty_like(x)
    call("xianliao_convolve", [x, None, taps, y], (1, length, channels, size))
    drawn = zip(*tokens.tolist(), log_probs.tolist(), strict=True)
    return [value for row in drawn for value in row] + y.tolist()


def test_programs_of_other_systems_print_the_tokens_of_python(name, tokenizer, tmp_path):
    checkpoint = tiny_checkpoint(tmp_path / "tiny", tokenizer)
    python, file = Chatbot.from_pretrained(checkpoint, dtype="int8"), weights_file(tmp_path, checkpoint)
    program = tmp_path / "talk.exe"
    build_program(name, TALK, program)
    messages_file = tmp_path / "messages"
    messages_file.write_text("".join(f"{message}\n" for message in MESSAGES), encoding="utf-8", newline="\n")
    kernel, *lines = emulated(name, program, tmp_path, file, 5, messages_file).split("\n")
    print(kernel)
    expected = [python.respond([message], seed).token_ids for seed in range(5) for message in MESSAGES]
    assert [tuple(map(int, line.split()[:-1])) for line in lines if line.strip()] == expected
