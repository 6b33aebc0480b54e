"""`make bench`: one table of speed ratios; this project and its peers run alternately on one thread."""

from __future__ import annotations

import argparse
import platform
import sys
import time

import torch

from chatbot.chat.bot import Chatbot
from tests.benchmarks import decoding_speed, serving_speed, training_speed
from tests.benchmarks.measure import to_markdown
from training.optim.memory import keep_freed_memory

PARTS = {
    "training": training_speed.step_rows,
    "packing": lambda rounds: [training_speed.padded_row(rounds)],
    "decoding": decoding_speed.single_rows,
    "batch": lambda rounds: [decoding_speed.batch_row(rounds)],
    "context": decoding_speed.context_rows,
    "serving": serving_speed.rows,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench", description="Compare speed with other projects.")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS), help="parts to run (default: all)")
    parser.add_argument("--rounds", type=int, default=5, help="rounds to take the median of (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    print(f"{platform.machine()}, torch {torch.__version__}, one thread, medians of CPU time", file=sys.stderr)
    rows = [row for name in args.only for row in PARTS[name](args.rounds)]
    print(to_markdown(rows))
    if "decoding" in args.only:
        print(decoding_speed.int8_price())
        started = time.perf_counter()
        bot = Chatbot.from_pretrained()
        size = bot.model.num_parameters() / 1e6
        print(f"loading the default checkpoint ({size:.1f}M): {time.perf_counter() - started:.2f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
