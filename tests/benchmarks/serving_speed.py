"""Serve many conversations: tokens per second with 64 and with one, and the wait of others while a long history joins.

    python -m tests.benchmarks --only serving       # also in `make bench`
    python -m tests.benchmarks.serving_speed --large    # GPT-2's size: 12 layers of width 768
    python -m tests.benchmarks.serving_speed --threads 2    # wall time on a machine without other work

Sides alternate and medians are shown: of CPU time on one thread, or of wall time on several. Other work on the machine
spoils wall time: a product that waits for a busy core takes a hundred times as long.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from chatbot.chat.batches import SharedBatch
from chatbot.chat.bot import Chatbot, Request
from chatbot.chat.jobs import Job
from chatbot.decoding.batch import make_native
from chatbot.decoding.rerank import Answered
from chatbot.decoding.settings import ReplySettings
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.dialogue import Prompt
from chatbot.text.tokenizer import DialogueTokenizer
from tests.benchmarks.measure import Row, to_markdown
from tests.benchmarks.peers import SIZES, VOCABULARY, ours
from tests.chat_models import write_chat_model
from tests.conftest import SAMPLES

PROMPT, REPLY, HISTORY = 12, 24, 900
SETTINGS = ReplySettings(min_reply_tokens=REPLY, max_reply_tokens=REPLY, floor_start_tokens=REPLY)
SOFTMAX = {"short_conv": 0, "output_gate": False}


def clock() -> float:
    """Return CPU seconds with one thread, and wall seconds with several."""
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def texts() -> list[str]:
    """Return the turns of the sample dialogues, to train tokenizers on."""
    return [turn for line in (SAMPLES / "everyday.jsonl").open(encoding="utf-8") for turn in json.loads(line)]


def our_bot(compiled: str | None = None, softmax: str | None = None) -> Chatbot | None:
    """Return a bot with random weights; None if it cannot be compiled.

    Args:
        compiled: float32 or int8 for the compiled library, None for the model itself.
        softmax: A size in `SIZES` for a model with nothing but softmax layers; None for our default of 12M.
    """
    tokenizer = DialogueTokenizer.train(texts(), vocab_size=700)
    model = ours(softmax, layer_types=["softmax"] * SIZES[softmax][1], **SOFTMAX) if softmax else ours()
    model.eval()
    if compiled and not make_native(model, compiled == "int8"):
        return None
    return bot_of(model, tokenizer)


def bot_of(model: XianliaoForCausalLM, tokenizer: DialogueTokenizer) -> Chatbot:
    """Return a bot whose model has more ids than its tokenizer; replies have no ids that the tokenizer does not know."""
    bot = Chatbot(model, tokenizer, SETTINGS)
    unknown = range(tokenizer.vocab_size, model.config.vocab_size)
    bot.vocabulary = replace(bot.vocabulary, banned_ids=(*bot.vocabulary.banned_ids, *unknown))
    return bot


def chat_bot(kind: str, folder: Path) -> Chatbot:
    """Return a bot with a chat model of another project, of the size of ours."""
    sizes = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64}
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    limits = {"vocab_size": VOCABULARY, "max_position_embeddings": 4096}
    write_chat_model(folder / kind, texts(), kind, **sizes, **heads, **limits)
    bot = Chatbot.from_pretrained(folder / kind, "cpu", "float32")
    bot.settings = SETTINGS
    return bot


def enter(batch: SharedBatch, seed: int, prompt_tokens: int = PROMPT) -> list[float]:
    """Let a conversation with a random prompt enter; return the list that gets the times of its tokens."""
    draw = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, 600, (prompt_tokens,), generator=draw).tolist()
    times: list[float] = []
    request = Request(Prompt(((tuple(ids), 0),), 1, 0), Answered([], []), SETTINGS, seed, 0.0)
    batch.enter(Job(request, lambda item: times.append(clock())))
    return times


@torch.inference_mode()
def tokens_per_second(bot: Chatbot, conversations: int) -> float:
    """Return the tokens per second of this many conversations that begin together, prompts included."""
    bot.snapshots.clear()
    batch, started = SharedBatch(bot), clock()
    for seed in range(conversations):
        enter(batch, seed)
    while len(batch):
        batch.step()
    return conversations * (REPLY + 1) / (clock() - started)


@torch.inference_mode()
def first_token_seconds(bot: Chatbot, prompt_tokens: int, short: int = 24, running: int = 16) -> list[float]:
    """Return the seconds to the first token of short messages that arrive while a long history is read.

    Args:
        bot: The bot.
        prompt_tokens: Maximum number of prompt tokens in a step.
        short: Number of short messages; one arrives at every step after the long one.
        running: Number of other conversations.
    """
    bot.snapshots.clear()
    batch = SharedBatch(bot, prompt_tokens)
    for seed in range(running):
        enter(batch, seed)
    for _ in range(4):
        batch.step()
    arrivals, firsts = [], []
    arrived = clock()
    for number in range(short + 1):
        times = enter(batch, 1000 + number, PROMPT if number else HISTORY)
        if number:
            arrivals.append(arrived)
            firsts.append(times)
        arrived = clock()  # the next message comes while this step runs
        for job in batch.step():
            job.deliver(None)
    while len(batch):
        for job in batch.step():
            job.deliver(None)
    return [times[0] - arrived for times, arrived in zip(firsts, arrivals, strict=True)]


def rows(rounds: int = 3, large: bool = False) -> list[Row]:
    """Compare 64 conversations with one for every way to decode, and bounded with unbounded reading of prompts."""
    table = []
    with tempfile.TemporaryDirectory() as folder:
        ways: dict[str, tuple[Callable[[], Chatbot | None], float | None]] = {
            "12M compiled fp32": (lambda: our_bot("float32"), None),
            "12M compiled int8": (lambda: our_bot("int8"), None),
            "12M linear": (our_bot, None),
            "12M softmax": (lambda: our_bot(softmax="12M"), 4.0),
            "Llama-shaped 12M": (lambda: chat_bot("llama", Path(folder)), 4.0),
            "Qwen-shaped 12M": (lambda: chat_bot("qwen2", Path(folder)), 4.0),
        }
        if large:
            ways = {"GPT-2-size softmax": (lambda: our_bot(softmax="GPT-2"), 4.0)}
        for name, (build, target) in ways.items():
            bot = build()
            if bot is None:
                continue
            tokens_per_second(bot, 2)  # warm-up
            speeds = [(tokens_per_second(bot, 1), tokens_per_second(bot, 64)) for _ in range(rounds)]
            alone, together = (statistics.median(values) for values in zip(*speeds, strict=True))
            task = f"{name}, 64 conversations"
            table.append(Row(task, "tokens/s", together, alone, "one conversation", together / alone, target))
            waits = [(p95(first_token_seconds(bot, 128)), p95(first_token_seconds(bot, 10**6))) for _ in range(rounds)]
            bounded, whole = (statistics.median(values) for values in zip(*waits, strict=True))
            task = f"{name}, first token p95 while {HISTORY} tokens join"
            table.append(Row(task, "ms", bounded * 1e3, whole * 1e3, "read at once", whole / bounded))
    return table


def p95(seconds: list[float]) -> float:
    """Return the 95th percentile."""
    return statistics.quantiles(seconds, n=20)[-1]


def main() -> None:
    parser = argparse.ArgumentParser(description="Serving speed of one model size.")
    parser.add_argument("--large", action="store_true", help="measure GPT-2's size instead of 12M parameters")
    parser.add_argument("--rounds", type=int, default=3, help="rounds to take the median of (default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch (default: %(default)s)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    print(to_markdown(rows(args.rounds, args.large)))


if __name__ == "__main__":
    main()
