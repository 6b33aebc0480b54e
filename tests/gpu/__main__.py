"""`tests/gpu/run.sh`: check and measure everything on a CUDA device and write one report."""

from __future__ import annotations

import argparse
import platform
import sys
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import torch

from chatbot.errors import first_line
from tests.conftest import ROOT
from tests.gpu import checks, timings
from tests.gpu.machine import Machine

STEPS: dict[str, Callable[[Machine], Iterator[str]]] = {
    "mixers": checks.mixers,
    "packing": checks.packing,
    "batches": checks.batches,
    "training": timings.training,
    "serving": timings.serving,
    "runs": checks.runs,
}
"""Steps in order of their worth, should the time run out; the recipe takes what is left."""

RECIPE = "recipe"
LEAST_RECIPE_SECONDS = 20


def main() -> int:
    """Run the steps; 1 if one failed."""
    parser = argparse.ArgumentParser(prog="tests/gpu/run.sh", description=__doc__)
    parser.add_argument("--dry", action="store_true", help="run every step in a tiny form on the CPU")
    parser.add_argument("--minutes", type=float, default=8, help="bound for all steps (default: %(default)s)")
    parser.add_argument("--only", nargs="+", choices=[*STEPS, RECIPE], default=[*STEPS, RECIPE], help="steps to run")
    parser.add_argument("--output", type=Path, default=ROOT / "build" / "gpu", help="folder of report.md")
    args = parser.parse_args()
    if not args.dry and not torch.cuda.is_available():
        parser.error("this machine has no CUDA device: add --dry")
    machine = Machine("cpu" if args.dry else "cuda", args.dry)
    if args.dry:
        torch.set_num_threads(1)
    end, failed = time.monotonic() + 60 * args.minutes, False
    args.output.mkdir(parents=True, exist_ok=True)
    with open(args.output / "report.md", "w", encoding="utf-8") as report:

        def say(line: str) -> None:
            print(line, flush=True)
            print(line, file=report, flush=True)

        date = datetime.now(UTC).strftime("%Y-%m-%d")
        say(f"# {machine.name}, {date}\n\ntorch {torch.__version__}, Python {platform.python_version()}")
        for name in args.only:
            left = end - time.monotonic()
            say(f"\n## {name}\n")
            if left < (LEAST_RECIPE_SECONDS if name == RECIPE else 0):
                say(f"- left out: {left:.0f} s are left")
                continue
            started = time.monotonic()
            try:
                for line in timings.recipe(machine, left - 10) if name == RECIPE else STEPS[name](machine):
                    say(f"- {line}")
            except Exception as error:  # the other steps are worth their time
                failed = True
                say(f"- FAILED: {type(error).__name__}: {first_line(error)}")
            say(f"- {time.monotonic() - started:.0f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
