"""The compiled C library: prebuilt in a platform wheel, or built once on the machine that runs it.

`step.c` computes the forward pass of `chatbot.model.network` for reading and decoding, from fp32 or int8 weights, in a
fraction of the time that a chain of small torch operations takes. Where the package has no usable prebuilt library
(`chatbot.native.prebuilt`), it is built with the system's C compiler on first use and stored in the user's cache
folder. Without either, or with XIANLIAO_NATIVE=0, torch computes the same.
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
import warnings
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import torch

from chatbot.errors import XianliaoWarning
from chatbot.native.prebuilt import is_written_by, load_prebuilt

SOURCE = Path(__file__).with_name("step.c")
FLAGS = (
    "-pthread",
    "-O3",
    "-fno-strict-aliasing",
    "-fno-math-errno",
    "-fno-trapping-math",
    "-ffp-contract=off",
)
"""-ffast-math is not used: the decode loop must detect a NaN, and all processors must round in the same way."""
TARGETS = (("-march=native", "-mprefer-vector-width=512"), ("-march=native",), ("-mcpu=native",), ())
"""Flags for the processor; the first that the compiler accepts are used."""


@cache
def library() -> ctypes.CDLL | None:
    """Return the library, which uses as many threads as torch. Without a prebuilt one, it is built once and stored in
    the cache folder.

    Returns:
        None if the library is switched off, or if there is neither a prebuilt library nor a C compiler with a writable
        cache folder. On Windows only a prebuilt library is used.
    """
    if os.environ.get("XIANLIAO_NATIVE", "1") == "0":
        return None
    try:
        loaded = load_prebuilt() or _load_compiled()
        if loaded is not None:
            ctypes.c_int64.in_dll(loaded, "xianliao_threads").value = torch.get_num_threads()
        return loaded
    except (OSError, RuntimeError, ValueError, subprocess.SubprocessError):
        return None  # no cache folder, no home, a compiler that hangs, a library without our symbols


def _load_compiled() -> ctypes.CDLL | None:
    """Return the library that this machine's compiler builds, or None without a compiler; errors as in `library`."""
    compilers = [shutil.which(name) for name in ("cc", "gcc", "clang")]
    compiler = next((path for path in compilers if path), None)
    if compiler is None or sys.platform == "win32":
        return None
    folder = _cache_folder()
    built = folder / f"step-{_fingerprint(compiler)}.so"
    if not built.is_file():
        _build(compiler, built)
    if not (is_written_by(folder, os.getuid()) and is_written_by(built, os.getuid())):
        warnings.warn(
            f"{folder} can be written to by other users, so the compiled library in it is not used."
            f" Run: rm -r {folder}, or set XDG_CACHE_HOME to a folder of your user.",
            XianliaoWarning,
            stacklevel=3,
        )
        return None
    return ctypes.CDLL(str(built))


def call(name: str, tensors: Sequence[torch.Tensor | None], sizes: Sequence[int]) -> int:
    """Call a function of the library.

    Args:
        name: Name of the function.
        tensors: Contiguous CPU tensors, passed as pointers to their memory; None is passed as NULL.
        sizes: Passed as int64 after the pointers.

    Returns:
        The return value of the function.
    """
    pointers = [ctypes.c_void_p(None if tensor is None else tensor.data_ptr()) for tensor in tensors]
    return getattr(library(), name)(*pointers, *map(ctypes.c_int64, sizes))


def _cache_folder() -> Path:
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "xianliao"
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    return folder


def _fingerprint(compiler: str) -> str:
    """Return a hash of everything that the library depends on: source, flags, compiler and processor."""
    version = subprocess.run([compiler, "--version"], capture_output=True, timeout=20, check=False).stdout
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        flags = "".join(sorted({line for line in lines if line.startswith(("flags", "Features", "CPU part"))}))
    except OSError:
        flags = platform.processor() + platform.machine()
    parts = (SOURCE.read_bytes(), repr(FLAGS + TARGETS).encode(), version, flags.encode())
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:16]


def _build(compiler: str, path: Path) -> None:
    """Compile to a temporary file and rename it, so that no process loads a half-written library.

    Raises:
        OSError: The compiler accepts none of `TARGETS`.
    """
    with tempfile.TemporaryDirectory(dir=path.parent) as folder:
        temporary = Path(folder) / "step.so"
        for target in TARGETS:
            command = [compiler, *FLAGS, *target, "-shared", "-fPIC", str(SOURCE), "-o", str(temporary), "-lm"]
            try:
                succeeded = subprocess.run(command, capture_output=True, timeout=120, check=False).returncode == 0
            except subprocess.TimeoutExpired:
                succeeded = False
            if succeeded:
                temporary.chmod(0o700)
                os.replace(temporary, path)
                return
    raise OSError(f"{compiler} cannot build {SOURCE} with any of the known options.")
