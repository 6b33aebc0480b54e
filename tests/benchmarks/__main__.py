"""make bench: one table of ratios, both sides run in turn on one thread."""

from __future__ import annotations

import platform
import sys

import torch

from tests.benchmarks import speed


def main() -> int:
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, medians of CPU time", file=sys.stderr)
    print(speed.to_markdown(speed.run()))
    print(speed.loading_row())
    return 0


if __name__ == "__main__":
    sys.exit(main())
