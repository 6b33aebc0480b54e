"""Processes that are killed: a run that is resumed, and a set that is built again, have the same bytes."""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from tests.attack.target import Row
from tests.conftest import ROOT
from tests.training.test_resume import KILLS, run, state_of

TIMES = 3
"""Number of runs that are killed at each of the moments of `KILLS`."""

PREPARE_KILLS = 12
DIALOGUES = ROOT / "checkpoints" / "recipe" / "dialogues" / "talk"


def prepared_set(folder: Path) -> Path:
    """Return a set that the commands of a user have prepared."""
    done = prepare(folder / "set")
    assert done is not None
    assert done.returncode == 0, done.stderr
    return folder / "set"


def prepare(output: Path, seconds: float | None = None) -> subprocess.CompletedProcess | None:
    """Run xianliao-prepare; after some seconds kill it with SIGKILL and return None."""
    command = [sys.executable, "-m", "data_prep", "--input", str(DIALOGUES), "--output", str(output)]
    command += ["--tokenizer", "default", "--valid-share", "0.1"]
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        try:
            _, errors = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return None
    return subprocess.CompletedProcess(command, process.returncode, "", errors)


def training(row: Row, folder: Path, times: int = TIMES) -> None:
    """Weights, optimizer and saves of runs that are killed at chosen moments are those of an uninterrupted run."""
    prepared = prepared_set(folder)
    run(1, prepared, folder / "whole")
    expected = state_of(folder / "whole")
    for time_ in range(times):
        output = folder / f"killed-{time_}"
        moments = random.Random(time_).sample(KILLS, len(KILLS))
        for moment, count in moments:
            code = run(1, prepared, output, moment, str(count), module="tests.training.dies")
            row.check(code in (-signal.SIGKILL, 0), (moment, code))  # 0: it finished before the moment came
        run(1, prepared, output)
        row.check(state_of(output) == expected, moments)
        row.check(not list((output / "resume").glob(".*")), "half saves")


def preparing(row: Row, folder: Path, kills: int = PREPARE_KILLS) -> None:
    """A set whose build is killed at random moments is absent or whole, and in the end has the same bytes."""
    began = time.monotonic()
    whole = hashes(prepared_set(folder))
    seconds = time.monotonic() - began
    chance = random.Random(0)
    output = folder / "killed"
    for _ in range(kills):
        done = prepare(output, chance.uniform(0.2, 0.9) * seconds)
        row.check(done is None or done.returncode == 0, done and done.stderr[-200:])
        row.check(not output.exists() or hashes(output) == whole, "half a set, or other bytes")
        if output.exists():
            shutil.rmtree(output)  # the next build begins anew; one that was killed goes on
    done = prepare(output)
    row.check(done is not None and done.returncode == 0 and hashes(output) == whole, "other bytes")


def hashes(folder: Path) -> dict[str, str]:
    """Return the hash of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
