"""Compare the speed of this checkout with an earlier commit: `python -m tests.benchmarks.against COMMIT`.

The commit is checked out into a temporary worktree. Both sides use its bundled checkpoint, one thread and the same
inputs, run alternately in one run, and are compared by CPU time. The commit needs `chatbot.Chatbot` and the command
`python -m data_prep`, which all commits since the first bundled checkpoint have.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from chatbot.text.dialogue_files import read_dialogues
from tests.benchmarks import side
from tests.conftest import ROOT, SAMPLES

LOWEST_RATIO = 0.97
DIALOGUES = 6000
MIN_ROUNDS = 3


@dataclass
class Task:
    """One measurement and the CPU seconds of each round of both sides."""

    name: str
    unit: str
    scale: float
    old: list[float] = field(default_factory=list)
    new: list[float] = field(default_factory=list)

    def row(self) -> str:
        """Return the row of the table: medians, the ratio of the medians, the smallest and largest ratio of a round."""
        old, new = statistics.median(self.old), statistics.median(self.new)
        ratios = [before / after for before, after in zip(self.old, self.new, strict=True)]
        mark = "" if old / new >= LOWEST_RATIO else " ✗"
        medians = f"{old * self.scale:.3g} | {new * self.scale:.3g}"
        return f"| {self.name} | {self.unit} | {medians} | {old / new:.3f}{mark} | {min(ratios):.3f} to {max(ratios):.3f} |"


class Side:
    """A process that measures one checkout; see `tests.benchmarks.side`."""

    def __init__(self, root: Path, checkpoint: Path):
        self.environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
        self.root, self.checkpoint = root, checkpoint
        command = [sys.executable, "-P", side.__file__, str(root), str(checkpoint)]
        self.process = subprocess.Popen(
            command, cwd=root, env=self.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def measure(self, work: str) -> float:
        """Return the CPU seconds of `decode` or `train`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(work + "\n")
        self.process.stdin.flush()
        return float(self.process.stdout.readline())

    def prepare(self, corpus: Path) -> float:
        """Return the CPU seconds of preparing a corpus, start of the command included."""
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-P", "-m", "data_prep", "--input", str(corpus), "--output", f"{folder}/set"]
            options = ["--tokenizer", str(self.checkpoint), "--processes", "1"]
            log = Path(folder) / "log"
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [*command, *options], cwd=self.root, env=self.environment, stdout=output, stderr=output
                )
                _, status, usage = os.wait4(process.pid, 0)
            assert status == 0, log.read_text(encoding="utf-8", errors="replace")
        return usage.ru_utime + usage.ru_stime

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.wait()


@contextmanager
def checkout(commit: str) -> Iterator[Path]:
    """Check a commit out into a temporary worktree, which is removed when the block ends."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "old"
        subprocess.run(["git", "worktree", "add", "--quiet", "--detach", str(path), commit], cwd=ROOT, check=True)
        try:
            yield path
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(path)], cwd=ROOT, check=True)


def write_corpus(path: Path, dialogues: int) -> None:
    """Write dialogues whose turns are made of two turns of the sample dialogues; each call writes the same."""
    turns = [turn for dialogue in read_dialogues(SAMPLES) for turn in dialogue]
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for _ in range(dialogues):
            new_turns = ["，".join(draw.sample(turns, 2)) for _ in range(draw.randint(2, 6))]
            file.write(json.dumps(new_turns, ensure_ascii=False) + "\n")


def compare(commit: str, rounds: int, seconds: float, dialogues: int = DIALOGUES) -> list[Task]:
    """Measure both sides in at most `rounds` rounds; after `MIN_ROUNDS` of them, none begins after `seconds`."""
    deadline = time.monotonic() + seconds
    tasks = [
        Task("decode one reply after another", "ms/token", 1e3 / side.DECODED_TOKENS),
        Task("training step", "µs/token", 1e6 / side.TRAINED_TOKENS),
        Task("prepare", "ms/dialogue", 1e3 / dialogues),
    ]
    with checkout(commit) as old_root, tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        write_corpus(corpus, dialogues)
        checkpoint = old_root / "checkpoints" / "default"
        old, new = Side(old_root, checkpoint), Side(ROOT, checkpoint)
        works: list[Callable[[Side], float]] = [
            lambda measured: measured.measure("decode"),
            lambda measured: measured.measure("train"),
            lambda measured: measured.prepare(corpus),
        ]
        try:
            for number in range(rounds):
                if number >= MIN_ROUNDS and time.monotonic() > deadline:
                    break
                for task, work in zip(tasks, works, strict=True):
                    pairs = [(old, task.old), (new, task.new)]
                    for measured, times in pairs if number % 2 else reversed(pairs):
                        times.append(work(measured))
        finally:
            old.close()
            new.close()
    return tasks


def main() -> int:
    parser = argparse.ArgumentParser(description="Compare the speed of this checkout with an earlier commit.")
    parser.add_argument("commit", help="commit, tag or branch to compare with")
    parser.add_argument("--rounds", type=int, default=9, help="rounds to take the medians of (default: %(default)s)")
    parser.add_argument(
        "--seconds",
        type=float,
        default=200,
        help="begin no round after this time, from the third on (default: %(default)s)",
    )
    args = parser.parse_args()
    tasks = compare(args.commit, args.rounds, args.seconds)
    print(f"CPU time on one thread, medians of {len(tasks[0].old)} rounds; a ratio above 1: this checkout is faster")
    print(
        f"| task | unit | {args.commit} | here | {args.commit} / here | ratios of the rounds |\n|---|---|--:|--:|--:|--:|"
    )
    print(*(task.row() for task in tasks), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
