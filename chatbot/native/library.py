"""Loops in C: compiled once on the machine they run on, left out where that is not possible.

`step.c` computes what `chatbot.model.network` computes when it reads and decodes, from fp32 weights or int8 ones, in a fraction of
the time that a chain of small torch operations takes. It is built with the system's C compiler on first use and kept in
the user's cache folder; without a compiler, or with XIANLIAO_NATIVE=0, torch does the same.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

SOURCE = Path(__file__).with_name("step.c")
FLAGS = (
    *("-pthread", "-O3", "-fno-strict-aliasing", "-fno-math-errno", "-fno-trapping-math"),
    *("-fassociative-math", "-fno-signed-zeros", "-freciprocal-math"),
)
"""Not -ffast-math: the decode loop has to see a NaN."""
TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())


@cache
def library() -> ctypes.CDLL | None:
    """The compiled step, built when it is not there yet, with as many threads as torch has; None where it cannot be."""
    if os.environ.get("XIANLIAO_NATIVE", "1") == "0":
        return None
    compiler = next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)
    if compiler is None or sys.platform == "win32":
        return None
    try:
        path = _cache_folder() / f"step-{_fingerprint(compiler)}.so"
        if not path.is_file():
            _build(compiler, path)
        found = ctypes.CDLL(str(path))
        ctypes.c_int64.in_dll(found, "xianliao_threads").value = torch.get_num_threads()
        return found
    except (OSError, RuntimeError, subprocess.SubprocessError):  # no cache folder, no home, a compiler that hangs
        return None


def call(name: str, tensors: Sequence, sizes: Sequence[int]) -> int:
    """Calls a function of the library with the memory of contiguous CPU tensors (None is NULL) and with whole numbers."""
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    return getattr(library(), name)(*pointers, *map(ctypes.c_int64, sizes))


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xianliao"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _fingerprint(compiler: str) -> str:
    """Names what the library depends on: source, flags, compiler and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=False).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "CPU part"))}))
    except OSError:
        flags = platform.processor() + platform.machine()
    parts = (SOURCE.read_bytes(), repr(FLAGS + TARGETS).encode(), version, flags.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(compiler: str, path: Path) -> None:
    """Compiles to a file of its own and renames it, so that two processes cannot meet half a library."""
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        fresh = Path(folder) / "step.so"
        for target in TARGETS:
            command = [compiler, *FLAGS, *target, "-shared", "-fPIC", str(SOURCE), "-o", str(fresh), "-lm"]
            try:
                done = subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
            except subprocess.TimeoutExpired:
                done = False
            if done:
                os.replace(fresh, path)
                return
    raise OSError("no C compiler option works")
