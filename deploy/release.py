"""Build the files of a release and check them; .github/workflows/release.yml runs the same command.

    python -m deploy.release [--output dist] [--only page lite wheels] [--target linux-x86_64 ...]

page    The bundled bot as one HTML file, and its weights file for the C runtime.
lite    Wheels of xianliao-lite, one for each system.
wheels  Wheels of xianliao: one for each system, with the prebuilt library, and one for all systems, without it.

Needs zig: pip install -e ".[release]". Each file is listed with its size and SHA-256 in SHA256SUMS.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from chatbot.checkpoint.export.html import export_html
from chatbot.checkpoint.export.lite import export_lite
from chatbot.checkpoint.location import resolve
from chatbot.errors import XianliaoError
from chatbot.native.building import build_prebuilt
from chatbot.native.prebuilt import MANIFEST

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("page", "lite", "wheels")
PLATFORM_TAGS = {
    "linux-x86_64": "manylinux2014_x86_64",
    "linux-aarch64": "manylinux2014_aarch64",
    "macos-arm64": "macosx_11_0_arm64",
    "windows-x86_64": "win_amd64",
}
"""Wheel tag of each system, the same as in lite/build.py."""

MAGIC = {".so": b"\x7fELF", ".dylib": b"\xcf\xfa\xed\xfe", ".dll": b"MZ"}
MB = 10**6
MAX_LITE_BYTES, MAX_LIBRARY_BYTES = MB, MB // 2
PREBUILT = "chatbot/native/prebuilt/"


class ReleaseError(XianliaoError):
    """A file of the release is not as it should be."""


def build_page(output: Path) -> list[Path]:
    """Write the HTML file of the bundled bot and its weights file, and check the size of the page.

    Raises:
        ReleaseError: The page is larger than 1.4 times the weights plus 1 MB.
    """
    weights, page = output / "xianliao-default.xianliao", output / "xianliao.html"
    export_lite(resolve("default"), weights)
    export_html(resolve("default"), page)
    check_page(page.stat().st_size, weights.stat().st_size)
    return [page, weights]


def check_page(page_bytes: int, weights_bytes: int) -> None:
    """Check the size of the page against the weights inside.

    Raises:
        ReleaseError: The page is too large.
    """
    limit = weights_bytes * 1.4 + MB
    if page_bytes > limit:
        raise ReleaseError(f"The page has {page_bytes / MB:.1f} MB; the limit is {limit / MB:.1f} MB.")


def build_lite(output: Path, targets: Sequence[str]) -> list[Path]:
    """Build the wheels of xianliao-lite by lite/build.py, and check them.

    Raises:
        ReleaseError: A wheel is too large or has no library of its system.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, str(ROOT / "lite" / "build.py"), "--output", folder, "--target", *targets]
        _run(command, ROOT)
        built = sorted(Path(folder).glob("*.whl"))
        for wheel in built:
            if wheel.stat().st_size > MAX_LITE_BYTES:
                raise ReleaseError(f"{wheel.name} has {wheel.stat().st_size / MB:.2f} MB; the limit is 1 MB.")
            check_library(wheel, "xianliao_lite/xianliao", b"xl_begin")
        return [Path(shutil.copy(wheel, output)) for wheel in built]


def build_wheels(output: Path, targets: Sequence[str]) -> list[Path]:
    """Build the wheels of xianliao from the files that git knows, and check the libraries inside.

    Raises:
        ReleaseError: This is not a git checkout, or a wheel has a wrong library.
    """
    built = []
    for target in (None, *targets):
        with tempfile.TemporaryDirectory() as folder:
            source = Path(folder) / "source"
            _copy_checkout(source)
            if target is not None:
                build_prebuilt(target, source / PREBUILT)
            tag = [] if target is None else ["--plat-name", PLATFORM_TAGS[target]]
            setup = [sys.executable, "-c", "import setuptools; setuptools.setup()", "-q", "bdist_wheel", *tag]
            _run([*setup, "--dist-dir", "made"], source)
            wheel = next((source / "made").glob("*.whl"))
            with zipfile.ZipFile(wheel) as content:
                names = [name for name in content.namelist() if name.startswith(PREBUILT)]
            if target is None and names:
                raise ReleaseError(f"The wheel for all systems has the files of one: {', '.join(names)}.")
            if target is not None:
                check_library(wheel, PREBUILT + "xianliao", b"xianliao_choose")
            built.append(Path(shutil.copy(wheel, output)))
    return built


def check_library(wheel: Path, prefix: str, symbol: bytes) -> None:
    """Check that a wheel has one library, in the format of its system and with a symbol.

    Raises:
        ReleaseError: The wheel has another number of libraries, or its library is wrong.
    """
    with zipfile.ZipFile(wheel) as content:
        names = [name for name in content.namelist() if name.startswith(prefix) and Path(name).suffix in MAGIC]
        if len(names) != 1:
            raise ReleaseError(f"{wheel.name} has {len(names)} libraries instead of one.")
        library = content.read(names[0])
        manifests = [name for name in content.namelist() if name == PREBUILT + MANIFEST]
        recorded = [json.loads(content.read(name))["sha256"] for name in manifests]
    magic = MAGIC[Path(names[0]).suffix]
    if not library.startswith(magic) or symbol not in library or len(library) > MAX_LIBRARY_BYTES:
        raise ReleaseError(f"{names[0]} in {wheel.name} is not a library of its system, or is too large.")
    if recorded and recorded != [hashlib.sha256(library).hexdigest()]:
        raise ReleaseError(f"{names[0]} in {wheel.name} differs from its manifest.")


def write_sums(output: Path, files: Sequence[Path]) -> Path:
    """Write the SHA-256 of each file to SHA256SUMS, as `sha256sum --check` reads it."""
    path = output / "SHA256SUMS"
    lines = [f"{hashlib.sha256(file.read_bytes()).hexdigest()}  {file.name}\n" for file in sorted(files)]
    path.write_text("".join(lines), encoding="utf-8", newline="\n")
    return path


def _copy_checkout(target: Path) -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=False)
    if listed.returncode:
        raise ReleaseError(f"{ROOT} is not a git checkout, so it is not known which files belong to the wheel.")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)


def _run(command: Sequence[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, errors="replace", check=False)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise ReleaseError(f"{Path(command[1]).name} failed: {last}")


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts to build (default: all)")
    parser.add_argument("--target", nargs="+", choices=PLATFORM_TAGS, default=list(PLATFORM_TAGS), help="systems")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Build the parts of the command line."""
    args = build_parser().parse_args(argv)
    output = args.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    files = []
    try:
        files += build_page(output) if "page" in args.only else []
        files += build_lite(output, args.target) if "lite" in args.only else []
        files += build_wheels(output, args.target) if "wheels" in args.only else []
    except XianliaoError as error:
        print(error, file=sys.stderr)
        return 1
    for path in (*files, write_sums(output, files)):
        print(f"{path.name}: {path.stat().st_size / MB:.2f} MB")
    return 0


if __name__ == "__main__":
    sys.exit(main())
