"""Build wheels of xianliao-lite, with the library for each system.

    python lite/build.py --output dist [--target linux-x86_64 ...] [--bot bot.xianliao]

Needs the big package with its extra `html` (zig). The same zig gives the same libraries on every machine.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from chatbot.native.building import TARGETS_OF_ZIG, build_with_zig

HERE = Path(__file__).parent
TAGS = {
    "linux-x86_64": "manylinux2014_x86_64",
    "linux-aarch64": "manylinux2014_aarch64",
    "macos-arm64": "macosx_11_0_arm64",
    "windows-x86_64": "win_amd64",
}
"""Wheel tag of each system."""

SETUP = "import setuptools; setuptools.setup()"


def build_wheel(target: str, output: Path, bot: Path | None = None) -> Path:
    """Build the wheel of one system, with a weights file inside if one is given, and return its path."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder) / "lite"
        shutil.copytree(HERE, work, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build", "dist"))
        package = work / "xianliao_lite"
        build_with_zig(target, package / f"xianliao{TARGETS_OF_ZIG[target].suffix}")
        if bot is not None:
            shutil.copyfile(bot, package / "bot.xianliao")
        command = [sys.executable, "-c", SETUP, "-q", "bdist_wheel", "--plat-name", TAGS[target], "--dist-dir", "made"]
        subprocess.run(command, cwd=work, check=True, capture_output=True)
        built = next((work / "made").glob("*.whl"))
        output.mkdir(parents=True, exist_ok=True)
        return Path(shutil.copy(built, output))


def main() -> None:
    """Build the wheels of the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("dist"), help="folder (default: %(default)s)")
    parser.add_argument("--target", nargs="+", choices=TAGS, default=list(TAGS), help="systems (default: all)")
    parser.add_argument("--bot", type=Path, help="weights file to put into the wheels")
    args = parser.parse_args()
    for target in args.target:
        wheel = build_wheel(target, args.output, args.bot)
        print(f"{wheel}: {wheel.stat().st_size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
