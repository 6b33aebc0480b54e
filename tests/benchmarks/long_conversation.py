"""Processor time of reading a message in a conversation that is much longer than the context of the bundled bot.

python -m tests.benchmarks.long_conversation [EXCHANGES]
"""

from __future__ import annotations

import sys
import threading
import time
from statistics import median

from chatbot import Chatbot, ChatSession
from chatbot.text.dialogue_files import read_dialogues
from tests.conftest import ROOT

DIALOGUES = ROOT / "checkpoints" / "recipe" / "dialogues" / "held_out" / "ordinary.jsonl.xz"


def reading_milliseconds(bot: Chatbot, exchanges: int) -> tuple[list[float], int]:
    """Return the time of reading each message, and how often old turns were dropped; a person lets the bot finish."""
    messages = [turn[:40] for turns in read_dialogues(DIALOGUES) for turn in turns[::2]]
    spent: list[float] = []
    first_turns: list[int] = []
    read = bot.read_prompt

    def timed(prompt):
        if threading.current_thread() is not threading.main_thread():
            return read(prompt)
        started = time.process_time()
        result = read(prompt)
        spent.append(1000 * (time.process_time() - started))
        first_turns.append(prompt.first_turn)
        return result

    bot.reply(["你好"], seed=0)  # what is loaded once is not counted
    bot.snapshots.clear()
    bot.read_prompt = timed
    session = ChatSession(bot)
    for number, message in enumerate(messages[:exchanges]):
        session.reply(message, seed=number)
        for thread in threading.enumerate():
            if thread.name == "reading ahead":
                thread.join()
    return spent, len(set(first_turns)) - 1


def main() -> None:
    spent, drops = reading_milliseconds(
        Chatbot.from_pretrained("default"), int(sys.argv[1]) if len(sys.argv) > 1 else 300
    )
    print(
        f"{len(spent)} messages, old turns dropped {drops} times: median {median(spent):.1f} ms, worst {max(spent):.1f} ms,"
        f" worst / median {max(spent) / median(spent):.1f}, worst / median of the first ten"
        f" {max(spent) / median(spent[:10]):.1f}"
    )


if __name__ == "__main__":
    main()
