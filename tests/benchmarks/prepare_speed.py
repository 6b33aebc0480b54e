"""Time and memory of preparing LCCC at full size, on a synthetic corpus of its shape.

    python -m tests.benchmarks.prepare_speed --dialogues 6800000 --kill

It recombines clauses of available corpora into a .jsonl.gz like LCCC's (spaced characters, numbers and lengths of
turns), with a few percent of dirt for the cleaning rules. Then it runs xianliao-prepare with default settings and
reports time, resident memory (sum over the processes), input, tokens and dropped dialogues. `--kill` kills a second
build half-way, continues it, and compares the bytes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import json
import multiprocessing
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import psutil

from data_prep.reading.files import list_files
from tests.records import read_records

ROOT = Path(__file__).parents[2]
CORPORA = ROOT.parent / "shared" / "data"
SAMPLES = ROOT / "data_prep" / "samples"
PART = 50_000
_CLAUSE = re.compile("[^，。！？～…,.!?~]+[，。！？～…,.!?~]*")
_DIRT = (
    "http://t.cn/A6{0:05x} {1}",
    "回复 @用户{0}: {1}",
    "{1} //@路人{0}: 转了",
    "#每日话题{0}# {1}",
    "{1}，加我微信 abc{0}5",
    "{1} 联系 138{0:08}",
    "{1}[doge][doge]",
    "{1}(≧▽≦)",
    "{1}哈哈哈哈哈哈哈哈哈哈",
    "{0} ok",
    "{1}，你个傻逼",
)


def pool(paths: Sequence[Path]) -> tuple[list[str], list[tuple[int, ...]]]:
    """Return the clauses of the corpora, spaced like LCCC's, and the numbers of clauses per turn of each dialogue."""
    clauses, shapes = [], []
    for path in paths:
        for _, turns, _ in read_records(path):
            parts = [_CLAUSE.findall(turn.replace(" ", "")) for turn in turns or ()]
            if len(parts) > 1 and all(parts):
                shapes.append(tuple(map(len, parts)))
                clauses += [" ".join(clause) for part in parts for clause in part]
    return clauses, shapes


_POOL: tuple[list[str], list[tuple[int, ...]]] = ([], [])


def _start(paths: Sequence[Path]) -> None:
    global _POOL
    _POOL = pool(paths)


def _part(number: int, count: int, dirt: float) -> bytes:
    """Return some dialogues as a gzip member: random clauses in each turn; 1 % are copies of an earlier dialogue."""
    clauses, shapes = _POOL
    draw = random.Random(number)
    lines: list[str] = []
    for _ in range(count):
        if lines and draw.random() < 0.01:
            lines.append(draw.choice(lines))
            continue
        shape = shapes[int(draw.random() * len(shapes))]
        turns = [" ".join([clauses[int(draw.random() * len(clauses))] for _ in range(size)]) for size in shape]
        if draw.random() < dirt:
            index = draw.randrange(len(turns))
            turns[index] = draw.choice(_DIRT).format(draw.randrange(10**6), turns[index])
        lines.append(json.dumps(turns, ensure_ascii=False))
    return gzip.compress(("\n".join(lines) + "\n").encode(), 4, mtime=0)


def generate(path: Path, dialogues: int, corpora: Sequence[Path], dirt: float = 0.05) -> None:
    """Write the corpus; the same arguments give the same bytes."""
    parts = [(number, min(PART, dialogues - number * PART), dirt) for number in range(-(-dialogues // PART))]
    with (
        ProcessPoolExecutor(2, multiprocessing.get_context("spawn"), _start, (corpora,)) as workers,
        path.open("wb") as file,
    ):
        for start in range(0, len(parts), 8):
            for member in workers.map(_part, *zip(*parts[start : start + 8], strict=True)):
                file.write(member)


def watch(command: Sequence[str], stop_after: float | None = None) -> tuple[float, float, int]:
    """Run a command and return its seconds, the peak of resident bytes over all its processes, and its exit code.

    Args:
        command: Command and arguments.
        stop_after: Kill all processes after this many seconds; None lets them finish.
    """
    started, peak = time.perf_counter(), 0
    process = psutil.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while process.poll() is None:
        family = [process, *process.children(recursive=True)]
        peak = max(peak, sum(_resident(member) for member in family))
        if stop_after is not None and time.perf_counter() - started > stop_after:
            for member in family:
                member.send_signal(signal.SIGKILL)
        time.sleep(0.1)
    return time.perf_counter() - started, peak, process.returncode


def _resident(process: psutil.Process) -> int:
    try:
        return process.memory_info().rss
    except psutil.NoSuchProcess:
        return 0


def digest(folder: Path) -> str:
    """Return the SHA-256 of the names and bytes of all files in a folder."""
    hasher = hashlib.sha256()
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        hasher.update(str(path.relative_to(folder)).encode() + path.read_bytes())
    return hasher.hexdigest()


def measure(source: Path, output: Path, kill: bool, options: Sequence[str] = ()) -> dict:
    """Build the set and return time, memory and counts; with `kill` build it again, killed half-way."""
    command = [sys.executable, "-m", "data_prep", "--input", str(source), *options, "--output"]
    seconds, memory, code = watch([*command, str(output)])
    if code:
        raise SystemExit(f"the build failed with exit code {code}")
    manifest = json.loads((output / "manifest.json").read_text(encoding="utf-8"))
    counts = manifest["dialogues"]
    result = {
        "dialogues": counts["read"],
        "input_mb": round(source.stat().st_size / 1e6, 1),
        "minutes": round(seconds / 60, 2),
        "peak_resident_mb": round(memory / 1e6),
        "tokens_written": sum(split["tokens"] for split in manifest["splits"].values()),
        "survived": round(1 - counts["dropped"] / counts["read"], 4),
        "split": round(counts["split"] / counts["read"], 4),
    }
    if kill:
        again = output.with_name(f"{output.name}-killed")
        _, _, code = watch([*command, str(again)], stop_after=seconds / 2)
        is_whole_looking = again.exists()
        rest, _, last = watch([*command, str(again)])
        result |= {
            "killed_with": code,
            "set_after_the_kill": is_whole_looking,
            "minutes_after_the_kill": round(rest / 60, 2),
            "same_bytes": last == 0 and digest(again) == digest(output),
        }
        shutil.rmtree(again, ignore_errors=True)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dialogues", type=int, default=6_800_000)
    parser.add_argument(
        "--corpora",
        nargs="+",
        type=Path,
        help="files and folders to recombine (default: shared corpora or the samples)",
    )
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/prepare_speed"), help="folder for the corpus and the set"
    )
    parser.add_argument(
        "--kill", action="store_true", help="build a second time, killed half-way, and compare the bytes"
    )
    args = parser.parse_args()
    names = ("LCCC-base_valid.json", "cdial_toy_train.txt")
    corpora = args.corpora or [CORPORA / name for name in names if (CORPORA / name).exists()] or [SAMPLES]
    args.folder.mkdir(parents=True, exist_ok=True)
    source = args.folder / f"lccc_shaped_{args.dialogues}.jsonl.gz"
    if not source.exists():
        part = source.with_suffix(".part")
        generate(part, args.dialogues, list_files(corpora))
        part.rename(source)
    output = args.folder / "set"
    shutil.rmtree(output, ignore_errors=True)
    print(json.dumps(measure(source, output, args.kill), indent=2))


if __name__ == "__main__":
    main()
