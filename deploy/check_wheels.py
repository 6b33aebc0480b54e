"""Install the wheels of a release into new environments on this system and talk to them; needs only Python and pip.

    python deploy/check_wheels.py dist [--replies dist/replies.json] [--big]

xianliao-lite has to add at most 20 MB besides numpy and answer within 2 s from the start of its process. With --replies,
the token ids of some replies are written to the file, or compared with it if it exists: they are the same on every
system. With --big, the wheel of xianliao is installed as well (about 1 GB of packages) and has to find its prebuilt library.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path

MB = 10**6
MAX_INSTALLED_BYTES = 20 * MB
WEIGHTS = "xianliao-default.xianliao"
REPLIES = """
import json, sys
from xianliao_lite import Bot
bot = Bot(sys.argv[1])
messages = ("你好", "今天心情不太好", "周末去哪里玩好呢", "哈哈", "你叫什么名字")
print(json.dumps([list(bot.reply([message], seed).token_ids) for message in messages for seed in range(4)]))
"""
PREBUILT = "from chatbot.native.library import library; print(library()._name)"


class CheckError(Exception):
    """A wheel does not do what it should."""


class Environment:
    """A new environment, with no packages but pip."""

    def __init__(self, folder: Path):
        venv.create(folder, with_pip=True)
        self.commands = folder / ("Scripts" if sys.platform == "win32" else "bin")
        self.folder = folder

    def run(self, command: str, *arguments: str) -> str:
        """Run a command of the environment and return its stdout.

        Raises:
            CheckError: The command fails.
        """
        variables = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "XIANLIAO_BOT")}
        done = subprocess.run(
            [str(self.commands / command), *arguments],
            cwd=self.folder,
            env={**variables, "PYTHONUTF8": "1"},
            capture_output=True,
            encoding="utf-8",
            check=False,
        )
        if done.returncode:
            raise CheckError(f"{command} {' '.join(arguments[:3])} failed: {done.stderr.strip()[-500:]}")
        return done.stdout

    def size(self) -> int:
        """Return the size of all files except those of numpy, in bytes."""
        files = [path for path in self.folder.rglob("*") if path.is_file() and not path.is_symlink()]
        return sum(path.stat().st_size for path in files if not any(part.startswith("numpy") for part in path.parts))


def check_lite(dist: Path, folder: Path, seconds: float) -> list[list[int]]:
    """Install xianliao-lite, measure it, and return the token ids of its replies.

    Raises:
        CheckError: The package is too large or too slow, or does not answer.
    """
    environment, weights = Environment(folder), str((dist / WEIGHTS).resolve())
    before = environment.size()
    environment.run(
        "python", "-m", "pip", "install", "-q", "--no-index", "--find-links", str(dist.resolve()), "xianliao-lite"
    )
    installed = environment.size() - before
    times = []
    for _ in range(3):
        started = time.monotonic()
        reply = environment.run("xianliao-lite", "chat", weights, "--message", "你好", "--seed", "1").strip()
        times.append(time.monotonic() - started)
        if not reply:
            raise CheckError("xianliao-lite gives no reply.")
    print(f"xianliao-lite: {installed / MB:.2f} MB installed, reply after {min(times):.2f} s (best of 3): {reply}")
    if installed > MAX_INSTALLED_BYTES:
        raise CheckError(f"xianliao-lite adds {installed / MB:.1f} MB; the limit is {MAX_INSTALLED_BYTES / MB:.0f} MB.")
    if min(times) > seconds:
        raise CheckError(f"xianliao-lite answers after {min(times):.2f} s; the limit is {seconds} s.")
    return json.loads(environment.run("python", "-c", REPLIES, weights))


def check_big(dist: Path, folder: Path) -> None:
    """Install xianliao and check that it answers with its prebuilt library.

    Raises:
        CheckError: It uses another library.
    """
    environment = Environment(folder)
    chosen, options = folder / "chosen", ["--no-index", "--no-deps", "--find-links", str(dist.resolve())]
    environment.run("python", "-m", "pip", "download", "-q", *options, "--dest", str(chosen), "xianliao")
    environment.run("python", "-m", "pip", "install", "-q", *map(str, chosen.glob("*.whl")))
    path = environment.run("python", "-c", PREBUILT).strip()
    if Path(path).parent.name != "prebuilt":
        raise CheckError(f"xianliao does not use its prebuilt library but {path}.")
    print(
        f"xianliao: {Path(path).name} is used; {environment.run('xianliao-chat', '--message', '你好', '--seed', '1')}"
    )


def build_parser() -> argparse.ArgumentParser:
    """Return the argument parser."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dist", type=Path, help="folder that `python -m deploy.release` has written")
    parser.add_argument("--replies", type=Path, help="file of token ids to write or to compare with")
    parser.add_argument("--seconds", type=float, default=2.0, help="limit for a reply of xianliao-lite")
    parser.add_argument("--big", action="store_true", help="check the wheel of xianliao as well")
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Check the wheels of the command line."""
    args = build_parser().parse_args(argv)
    try:
        with tempfile.TemporaryDirectory() as folder:
            replies = check_lite(args.dist, Path(folder) / "lite", args.seconds)
            if args.replies is not None and args.replies.is_file():
                if json.loads(args.replies.read_text(encoding="utf-8")) != replies:
                    raise CheckError(f"The replies differ from those in {args.replies}.")
                print(f"{len(replies)} replies are the same as in {args.replies}")
            elif args.replies is not None:
                args.replies.write_text(json.dumps(replies), encoding="utf-8")
            if args.big:
                check_big(args.dist, Path(folder) / "big")
    except CheckError as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
