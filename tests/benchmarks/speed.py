"""Training and decoding speed beside transformers' GPT-2 of the same size.

CPU seconds of one thread repeat to a few percent where wall times swing with the machine's other work, so both are
measured in process CPU time on one thread; A and B alternate and the medians are compared.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import GPT2Config, GPT2LMHeadModel

from chatbot.bot import Chatbot
from chatbot.configuration import XianliaoConfig
from chatbot.generate import Vocabulary, decode
from chatbot.model import XianliaoForCausalLM
from chatbot.sampling import ReplySettings
from training.memory import keep_freed_memory

WIDTH, LAYERS, HEADS, VOCABULARY = 384, 6, 6, 8192
PROMPT, REPLY = 16, 64


@dataclass(frozen=True)
class Row:
    """One line of the table: higher is better for both numbers."""

    what: str
    unit: str
    ours: float
    theirs: float

    @property
    def ratio(self) -> float:
        return self.ours / self.theirs


def models() -> tuple[XianliaoForCausalLM, GPT2LMHeadModel]:
    """Ours and GPT-2, with as good as equal parameters."""
    torch.manual_seed(0)
    ours = XianliaoForCausalLM(
        XianliaoConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=LAYERS,
            num_attention_heads=HEADS,
            head_dim=WIDTH // HEADS,
            intermediate_size=4 * WIDTH,
        )
    )
    dropouts = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    sizes = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 4096, "vocab_size": VOCABULARY}
    return ours, GPT2LMHeadModel(GPT2Config(**sizes, **dropouts))


def alternate(a: Callable[[], None], b: Callable[[], None], rounds: int) -> tuple[float, float]:
    """Median CPU seconds of a and of b, run in turn after a warm-up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for runs, work in zip(seconds, (a, b), strict=True):
            started = time.process_time()
            work()
            if number:
                runs.append(time.process_time() - started)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


def training_rows(rounds: int = 5) -> list[Row]:
    """A training step at several row lengths, 2,048 tokens each."""
    rows = []
    networks = models()
    optimizers = [torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True) for network in networks]
    for length in (256, 1024):
        ids = torch.randint(3, VOCABULARY, (2048 // length, length))

        def step(number: int, ids: torch.Tensor = ids) -> None:
            networks[number](input_ids=ids, labels=ids).loss.backward()
            optimizers[number].step()
            optimizers[number].zero_grad()

        ours, theirs = alternate(lambda: step(0), lambda: step(1), rounds)
        rows.append(Row(f"training, rows of {length}", "tokens / CPU s", ids.numel() / ours, ids.numel() / theirs))
    return rows


def decoding_rows(rounds: int = 5) -> list[Row]:
    """Greedy, batch 1, prompt 16, 64 tokens, EOS floor and token choice included; against generate()."""
    ours, theirs = (network.eval() for network in models())
    prompt = torch.randint(3, VOCABULARY, (1, PROMPT))
    settings = ReplySettings(method="greedy", floor_start_tokens=REPLY, max_reply_tokens=REPLY, min_reply_tokens=REPLY)

    @torch.inference_mode()
    def decode_ours() -> None:
        output = ours(prompt, use_cache=True, logits_to_keep=1)
        words = Vocabulary(end_id=2, banned_ids=(0, 1))
        for _ in decode(ours, output.past_key_values, output.logits[:, -1], [1], settings, words, [0]):
            pass

    def decode_theirs() -> None:
        lengths = {"max_new_tokens": REPLY, "min_new_tokens": REPLY}
        theirs.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **lengths)

    mine, peer = alternate(decode_ours, decode_theirs, rounds)
    return [Row("greedy decoding, batch 1, fp32", "tokens / CPU s", REPLY / mine, REPLY / peer)]


def context_rows(rounds: int = 5) -> list[Row]:
    """Decoding steps after a long history against after a short one: the state is as large, so the ratio is about 1."""
    ours, _ = models()
    ours.eval()
    states = []
    with torch.inference_mode():
        for length in (4096, 256):
            states.append(
                ours(torch.randint(3, VOCABULARY, (1, length)), use_cache=True, logits_to_keep=1).past_key_values
            )
    token = torch.tensor([[5]])

    @torch.inference_mode()
    def steps(number: int) -> None:
        state = states[number].clone()
        for _ in range(32):
            ours(token, past_key_values=state)

    long, short = alternate(lambda: steps(0), lambda: steps(1), rounds)
    return [Row("step at context 4,096 (ours) and 256 (ours)", "tokens / CPU s", 32 / long, 32 / short)]


def loading_row() -> str:
    """Seconds from nothing to a loaded default checkpoint, wall time."""
    started = time.perf_counter()
    bot = Chatbot.from_pretrained()
    return f"loading the default checkpoint: {time.perf_counter() - started:.2f} s, {bot.model.num_parameters() / 1e6:.1f}M"


def run(rounds: int = 5) -> list[Row]:
    torch.set_num_threads(1)
    keep_freed_memory()
    return [*training_rows(rounds), *decoding_rows(rounds), *context_rows(rounds)]


def to_markdown(rows: list[Row]) -> str:
    lines = ["| what | unit | xianliao | GPT-2 (transformers) | ratio |", "|---|---|--:|--:|--:|"]
    lines += [f"| {r.what} | {r.unit} | {r.ours:,.0f} | {r.theirs:,.0f} | {r.ratio:.2f} |" for r in rows]
    return "\n".join(lines)
