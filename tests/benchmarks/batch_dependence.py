"""How many replies change when other conversations are decoded beside them, by number format.

    python -m tests.benchmarks.batch_dependence              # on the CPU: float32 and bfloat16
    python -m tests.benchmarks.batch_dependence --device cuda

A random Qwen-shaped folder (64 wide, 2 layers, 4 heads) and our default mixers, compiled, answer the same messages alone,
one after the other, and all together, with the same seeds. A reply counts as changed if any token differs.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path

import torch

from chatbot.chat.bot import Chatbot
from chatbot.chat.worker import Worker
from tests.chat_models import write_chat_model
from tests.conftest import SAMPLES

CONVERSATIONS, REPLY_TOKENS = 16, 48
SIZES = {"hidden_size": 64, "intermediate_size": 128, "head_dim": 16, "max_position_embeddings": 1024}


def changed_replies(bot: Chatbot, messages: list[str], max_rows: int, **settings) -> int:
    """Return the number of replies whose tokens differ between decoding alone and asking at the same time."""
    alone = [bot.respond([message], seed, **settings).token_ids for seed, message in enumerate(messages)]
    arrived: list[list] = [[] for _ in messages]
    worker = Worker(bot, max_rows=max_rows)
    for seed, message in enumerate(messages):
        worker.submit(bot.request([message], seed, **settings), arrived[seed].append)
    worker.close(600)
    together = [items[-2].token_ids for items in arrived]
    return sum(one != other for one, other in zip(alone, together, strict=True))


def main() -> None:
    """Print one line for each model, number format and method."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cpu")
    device = parser.parse_args().device
    torch.set_num_threads(1)
    lines = (SAMPLES / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    turns = [turn for line in lines for turn in json.loads(line)]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_chat_model(folder, turns, "qwen3", **SIZES)
        cases = [(str(folder), dtype) for dtype in ("float32", "bfloat16")]
        cases += [("default", "float32"), ("default", "int8")] if device == "cpu" else []
        for checkpoint, dtype in cases:
            bot = Chatbot.from_pretrained(checkpoint, device, dtype)
            name = "bundled bot, compiled" if checkpoint == "default" else "Qwen-shaped folder"
            for method in ("greedy", "sample"):
                settings = {"method": method, "max_reply_tokens": REPLY_TOKENS, "candidates": 1}
                for max_rows in (64, 1) if dtype == "bfloat16" else (64,):
                    count = changed_replies(bot, turns[:CONVERSATIONS], max_rows, **settings)
                    case = f"{name}, {device}, {dtype}, {method}, --max-rows {max_rows}"
                    print(f"{case}: {count} of {CONVERSATIONS} replies changed", flush=True)


if __name__ == "__main__":
    main()
