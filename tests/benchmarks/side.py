"""One side of `tests.benchmarks.against`: `python side.py ROOT CHECKPOINT` measures the checkout in ROOT.

It reads `decode` or `train` from each line of its standard input and answers with CPU seconds. It imports nothing but
what earlier commits have, too.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

REPLIES, REPLY_TOKENS = 12, 64
DECODED_TOKENS = REPLIES * REPLY_TOKENS
ROWS, ROW_TOKENS = 4, 512
TRAINED_TOKENS = ROWS * ROW_TOKENS
HISTORY = ["你好", "你好呀", "今天心情不太好", "怎么了", "工作太累了", "那就早点休息吧", "周末想出去玩"]


def main(root: str, checkpoint: str) -> None:
    import torch

    import chatbot
    from chatbot import Chatbot

    assert Path(root).resolve() in Path(chatbot.__file__).resolve().parents, chatbot.__file__
    torch.set_num_threads(1)
    bot, model = Chatbot.from_pretrained(checkpoint), Chatbot.from_pretrained(checkpoint).model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5, fused=True)
    ids = torch.randint(3, model.config.vocab_size, (ROWS, ROW_TOKENS), generator=torch.Generator().manual_seed(0))
    length = {"floor_start_tokens": REPLY_TOKENS, "min_reply_tokens": REPLY_TOKENS, "max_reply_tokens": REPLY_TOKENS}

    def decode() -> None:
        for number in range(REPLIES):
            history = HISTORY[: 1 + 2 * (number % 4)]
            bot.reply([*history[:-1], f"{history[-1]}{number}"], seed=number, candidates=1, **length)

    def train() -> None:
        model(input_ids=ids, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    works = {"decode": decode, "train": train}
    for work in works.values():  # what is compiled or loaded once is not counted
        work()
    for line in sys.stdin:
        started = time.process_time()
        works[line.strip()]()
        print(time.process_time() - started, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
