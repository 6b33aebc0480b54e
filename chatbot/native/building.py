"""Building the C runtime (chatbot/native/runtime): for this machine, for others with zig, and to WebAssembly.

`build_prebuilt` builds the library for wheels of the package xianliao in the same way, so that users need no compiler.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from chatbot.errors import XianliaoError
from chatbot.native.library import FLAGS, SOURCE, TARGETS
from chatbot.native.prebuilt import DISPATCH, write_manifest

RUNTIME = Path(__file__).with_name("runtime")
FUNCTIONS = ("read", "draw", "convolve", "convolve_backward", "group", "threads")
"""Functions of step.c; every build of step.c appends a different suffix to these names."""

KERNEL_FLAGS = tuple(flag for flag in FLAGS if flag != "-pthread")
COMMON = ("-std=gnu11", "-fPIC", "-fvisibility=hidden", "-ffunction-sections", "-g0")
OF_RUNTIME = ("-DXIANLIAO_ONE_THREAD", "-DTILE=16")


class BuildError(XianliaoError):
    """The runtime cannot be built."""


@dataclass(frozen=True)
class Target:
    """A system that the runtime is built for.

    Attributes:
        triple: Target of zig, or None for the system's compiler.
        kernels: Compiler flags of each build of step.c, by the suffix of its function names.
        suffix: File name extension of the library.
        flags: Compiler flags for all files.
        link: Linker flags.
    """

    triple: str | None
    kernels: dict[str, tuple[str, ...]]
    suffix: str = ".so"
    flags: tuple[str, ...] = ()
    link: tuple[str, ...] = ("-shared", "-O2", "-s", "-Wl,--gc-sections", "-lm")


X86 = {
    "base": ("-mcpu=x86_64",),
    "avx2": ("-mcpu=x86_64_v3",),
    "avx512": ("-mcpu=x86_64_v4+avx512vnni", "-mprefer-vector-width=512"),
}
TARGETS_OF_ZIG = {
    "linux-x86_64": Target("x86_64-linux-gnu.2.17", X86),
    "linux-aarch64": Target(
        "aarch64-linux-gnu.2.17", {"base": ("-mcpu=generic",), "dotprod": ("-mcpu=generic+dotprod",)}
    ),
    "macos-arm64": Target(
        "aarch64-macos.11.0", {"base": ("-mcpu=apple_m1",)}, ".dylib", link=("-shared", "-O2", "-s", "-Wl,-dead_strip")
    ),
    "windows-x86_64": Target(
        "x86_64-windows-gnu", X86, ".dll", ("-Daligned_alloc(alignment,size)=malloc(size)",), ("-shared", "-O2", "-s")
    ),
    "wasm": Target(
        "wasm32-wasi",
        {"base": ("-msimd128",)},
        ".wasm",
        ("-msimd128", "-DXL_NATIVE"),
        (
            "-mexec-model=reactor",
            "-O2",
            "-s",
            "-Wl,--gc-sections",
            "-Wl,--export-dynamic,--export=malloc,--export=free",
            "-Wl,-z,stack-size=1048576",
        ),
    ),
}
"""Target systems by name. The same version of zig builds the same bytes on every machine."""


def build_native(output: Path, flags: Sequence[str] = (), kernels: Sequence[Sequence[str]] = TARGETS) -> None:
    """Build the runtime for this machine with its C compiler; it computes in the same way as `chatbot.native.library`.

    Args:
        output: Library to write.
        flags: Further flags, for all files.
        kernels: Flags for the processor; the first that the compiler accepts are used.

    Raises:
        BuildError: There is no C compiler, or it fails.
    """
    compiler = next((path for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)
    if compiler is None:
        raise BuildError("There is no C compiler. Install gcc or clang.")
    failure = BuildError("No flags are given.")
    for kernel in kernels:
        target = Target(None, {"base": tuple(kernel)}, flags=("-DXL_NATIVE", *flags))
        try:
            _build([compiler], target, output)
            return
        except BuildError as error:
            failure = error
    raise failure


def build_with_zig(name: str, output: Path) -> None:
    """Build the runtime for one of `TARGETS_OF_ZIG` with the package ziglang.

    Raises:
        BuildError: The package is missing, or the compiler fails.
    """
    _build(zig(), TARGETS_OF_ZIG[name], output)


def build_prebuilt(name: str, folder: Path, compiler: Sequence[str] = (), target: Target | None = None) -> Path:
    """Build the library for a wheel of the package xianliao, with several builds of step.c, and its manifest.

    Args:
        name: One of `TARGETS_OF_ZIG`.
        folder: Folder for both files; `chatbot.native.prebuilt` loads them from the folder `prebuilt` of the package.
        compiler: Command of the compiler; empty for zig.
        target: System, with flags for that compiler; None for the flags of zig.

    Returns:
        Path of the library.

    Raises:
        BuildError: zig is missing, or the compiler fails.
    """
    target = target or TARGETS_OF_ZIG[name]
    library = folder / f"xianliao{target.suffix}"
    flags = ["-DXIANLIAO_DISPATCHED", "-DXIANLIAO_ONE_THREAD" if name.startswith("windows") else "-pthread"]
    functions = [each for each in FUNCTIONS if each != "threads"]  # dispatch.c has one for all builds
    folder.mkdir(parents=True, exist_ok=True)
    _build([*compiler] or zig(), target, library, sources=[DISPATCH], flags=flags, functions=functions)
    write_manifest(library, name)
    return library


def build_program(name: str, main: Path, output: Path, libraries: Sequence[Path] | None = None) -> None:
    """Build a program; errors as for `build_with_zig`.

    Args:
        name: One of `TARGETS_OF_ZIG`; for Linux the program is static, so that an emulator needs no other file.
        main: Source of its function `main`.
        output: Program to write.
        libraries: Libraries to link, in which case a program for Linux is not static; None compiles the runtime into
            it.
    """
    target = TARGETS_OF_ZIG[name]
    if libraries is not None:
        command = [*zig(), "cc", "-target", str(target.triple), "-I", str(RUNTIME), str(main), *map(str, libraries)]
        _run([*command, *([] if name.startswith("windows") else ["-ldl"]), "-o", str(output)])
        return
    static = {"linux-x86_64": "x86_64-linux-musl", "linux-aarch64": "aarch64-linux-musl"}
    triple = static.get(name, target.triple)
    link = tuple(flag for flag in target.link if flag != "-shared")
    _build(zig(), replace(target, triple=triple, link=link, suffix=".exe"), output, (main,))


def zig() -> list[str]:
    """Return the command of zig.

    Raises:
        BuildError: The package ziglang is missing.
    """
    package = find_spec("ziglang")
    if package is None or package.origin is None:
        raise BuildError("Building for other systems needs zig. Run: pip install 'xianliao[html]'")
    return [str(Path(package.origin).with_name("zig"))]


def _build(
    compiler: list[str],
    target: Target,
    output: Path,
    more: Sequence[Path] = (),
    sources: Sequence[Path] | None = None,
    flags: Sequence[str] = OF_RUNTIME,
    functions: Sequence[str] = FUNCTIONS,
) -> None:
    """Compile and link.

    Args:
        compiler: Command of the compiler.
        target: System to build for.
        output: File to write.
        more: Sources besides `sources`.
        sources: Sources besides step.c; None takes the runtime's.
        flags: Flags of all files.
        functions: Functions of step.c whose names get the suffix of their build.

    Raises:
        BuildError: The compiler fails.
    """
    command = [*compiler, *(["cc", "-target", target.triple] if target.triple else [])]
    flags = [*COMMON, *flags, *target.flags]
    with tempfile.TemporaryDirectory() as folder:
        objects = []
        for ending, kernel in target.kernels.items():
            renamed = [f"-Dxianliao_{name}=xianliao_{name}_{ending}" for name in functions]
            objects.append(str(Path(folder) / f"step_{ending}.o"))
            _run([*command, *flags, *KERNEL_FLAGS, *kernel, *renamed, "-c", str(SOURCE), "-o", objects[-1]])
        for source in (*(sorted(RUNTIME.glob("*.c")) if sources is None else sources), *more):
            objects.append(str(Path(folder) / f"{source.stem}.o"))
            _run(
                [*command, *flags, "-O2", "-ffp-contract=off", "-I", str(RUNTIME), "-c", str(source), "-o", objects[-1]]
            )
        built = Path(folder) / f"built{target.suffix}"
        threads = ["-pthread"] if "-pthread" in flags else []
        _run([*command, *target.flags, *threads, *objects, *target.link, "-o", str(built)])
        shutil.copy(built, output)


def _run(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        lines = [line for line in done.stderr.splitlines() if "error" in line] or done.stderr.splitlines()[:1] or ["?"]
        raise BuildError(f"{Path(command[0]).name} cannot build the runtime: {lines[0]}")
