"""Compare decoding speed with transformers' generate, CTranslate2 and the memory bound; long contexts; cost of int8."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from itertools import islice
from pathlib import Path

import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.batch import make_native, start_batch
from chatbot.decoding.loop import decode
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.evaluation import intervals
from chatbot.text.dialogue import count_units
from chatbot.text.dialogue_files import read_dialogues
from chatbot.text.layouts import IGNORED_LABEL
from tests.benchmarks.measure import Row, alternate, latency_row, reading_seconds
from tests.benchmarks.peers import VOCABULARY, ctranslate2_generator, gpt2, multiplied, ours
from tests.conftest import ROOT

PROMPT, REPLY = 16, 64
DIALOGUES = ROOT / "checkpoints" / "recipe" / "dialogues" / "held_out"
HELD_OUT = {"plain": 200, "ordinary": 100}
"""Dialogues that the bundled bot was not trained on: number by file."""
SETTINGS = ReplySettings("greedy", floor_start_tokens=REPLY, max_reply_tokens=REPLY, min_reply_tokens=REPLY)


@torch.inference_mode()
def decode_ours(model, rows: int = 1) -> None:
    """Read a prompt and decode 64 tokens greedily, with EOS floor and choice of the token."""
    prompt = torch.randint(3, VOCABULARY, (rows, PROMPT)).tolist()
    steps = start_batch(model, rows)
    logits = steps.read(prompt, [[0] * PROMPT] * rows)
    for _ in decode(steps, logits, [1] * rows, SETTINGS, Vocabulary(2, (0, 1)), range(rows)):
        pass


def generate(model, rows: int = 1) -> None:
    """Do the same with `generate` of transformers."""
    prompt = torch.randint(3, VOCABULARY, (rows, PROMPT))
    lengths = {"max_new_tokens": REPLY, "min_new_tokens": REPLY}
    model.generate(prompt, attention_mask=torch.ones_like(prompt), do_sample=False, pad_token_id=0, **lengths)


def single_rows(rounds: int = 5) -> list[Row]:
    """Compare fp32 and int8 at batch size 1 with generate, CTranslate2 and the time to read the weights once."""
    peer = gpt2(positions=1024).eval()
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for kind, int8, wanted in (("fp32", False, (1.7, None)), ("int8", True, (5.0, 1.0))):
            model = ours().eval()
            compiled = make_native(model, int8)
            if int8 and not compiled:
                continue
            works: dict[str, Callable[[], object]] = {
                "ours": lambda model=model: decode_ours(model),
                "generate": lambda: generate(peer),
            }
            generator = ctranslate2_generator(peer, Path(folder), {"fp32": "float32", "int8": "int8"}[kind])
            if generator is not None:
                works["CTranslate2"] = lambda generator=generator: generate_ctranslate2(generator)
            seconds = {name: value / REPLY for name, value in alternate(works, rounds).items()}
            task = f"greedy 12M, batch 1, {kind}{'' if compiled else ' (not compiled)'}"
            rows.append(latency_row(task, "generate, GPT-2 fp32", seconds["ours"], seconds["generate"], wanted[0]))
            if generator is not None:
                name = f"CTranslate2, GPT-2 {kind}"
                rows.append(latency_row(task, name, seconds["ours"], seconds["CTranslate2"], wanted[1]))
            floor = reading_seconds(multiplied(model), int8)
            rows.append(latency_row(task, "reading the weights", seconds["ours"], floor, 0.5 if int8 else None))
    return rows


def generate_ctranslate2(generator, rows: int = 1) -> None:
    """Do the same with CTranslate2."""
    prompt = [["的"] * PROMPT for _ in range(rows)]
    lengths = {"max_length": REPLY, "min_length": REPLY, "include_prompt_in_result": False}
    result = generator.generate_batch(prompt, sampling_topk=1, **lengths)
    assert len(result[0].sequences_ids[0]) == REPLY


def batch_row(rounds: int = 3, rows: int = 16) -> Row:
    """Compare 30M parameters at batch size 16 with generate: int8 if the compiled network is available."""
    model, peer = ours("30M").eval(), gpt2("30M", positions=1024).eval()
    compiled = make_native(model, int8=True)
    seconds = alternate({"ours": lambda: decode_ours(model, rows), "generate": lambda: generate(peer, rows)}, rounds)
    kind = "int8" if compiled else "fp32 (not compiled)"
    per_token = {name: value / REPLY / rows for name, value in seconds.items()}
    task = f"greedy 30M, batch {rows}, {kind}"
    return latency_row(task, "generate, GPT-2 fp32", per_token["ours"], per_token["generate"], 4.5)


@torch.inference_mode()
def context_rows(rounds: int = 5, contexts: tuple[int, ...] = (256, 1024, 4096, 16384)) -> list[Row]:
    """Compare one step after a long history with softmax and a KV cache; the row names the state in MB."""
    model = ours().eval()
    make_native(model)
    softmax = ours(layer_types=["softmax"] * 6, short_conv=0, output_gate=False).eval()
    rows, first = [], None
    token, speaker = torch.tensor([5]), torch.tensor([1])
    for length in contexts:
        ids = torch.randint(3, VOCABULARY, (1, length))
        steps = start_batch(model)
        steps.read(ids.tolist(), [[0] * length])
        state = softmax(ids, use_cache=True, logits_to_keep=1).past_key_values

        def run_ours(steps=steps) -> None:
            for _ in range(16):
                steps(token, speaker)

        def run_softmax(state=state) -> None:
            copy = state.clone()
            for _ in range(16):
                softmax(token[None], past_key_values=copy)

        seconds = alternate({"ours": run_ours, "softmax": run_softmax}, rounds)
        ours_mb, peer_mb = steps.nbytes() / 1e6, state.nbytes() / 1e6
        task = f"step at context {length:,} ({ours_mb:.2f} MB; softmax {peer_mb:.1f} MB)"
        rows.append(latency_row(task, "softmax, KV cache", seconds["ours"] / 16, seconds["softmax"] / 16))
        first = first or seconds["ours"]
    task = f"step at context {contexts[-1]:,} against {contexts[0]}"
    rows.append(latency_row(task, f"ours at {contexts[0]}", seconds["ours"] / 16, first / 16, 1 / 1.1))
    return rows


@torch.inference_mode()
def int8_price(checkpoint: str = "default", dialogues: list[list[str]] | None = None) -> str:
    """Return the difference in nats/unit between fp32 and int8, both scored step by step, with its interval over dialogues.

    Args:
        checkpoint: The bot.
        dialogues: Texts; None takes 200 plain and 100 ordinary dialogues that the bundled bot was not trained on.
    """
    bot = Chatbot.from_pretrained(checkpoint)
    texts = dialogues or [
        turns
        for name, count in HELD_OUT.items()
        for turns in islice(read_dialogues(DIALOGUES / f"{name}.jsonl.xz"), count)
    ]
    samples = [bot.layout.lay_out([bot.tokenizer.encode(turn) for turn in turns]) for turns in texts]
    nats = {}
    for int8 in (False, True):
        if not make_native(bot.model, int8):
            return "int8: not compiled here"
        nats[int8] = [_step_nats(bot.model, sample) for sample in samples]
    units = [count_units(turns) for turns in texts]
    differences = [b - a for a, b in zip(nats[False], nats[True], strict=True)]
    low, high = intervals.ratio(differences, units)
    return (
        f"int8 costs {sum(differences) / sum(units):+.4f} nats/unit, 95 % {low:+.4f} to {high:+.4f} over"
        f" {len(texts)} dialogues"
        f" ({sum(nats[False]) / sum(units):.4f} in fp32; wanted: at most +0.01)"
    )


def _step_nats(model, sample) -> float:
    """Return the nats of a dialogue, read token by token."""
    steps, nats = start_batch(model), 0.0
    logits = steps.read([sample.input_ids[:1]], [sample.speaker_ids[:1]])
    for token, speaker, label in zip(sample.input_ids[1:], sample.speaker_ids[1:], sample.labels[1:], strict=True):
        if label != IGNORED_LABEL:
            nats -= logits.log_softmax(-1)[0, label].item()
        logits = steps(torch.tensor([token]), torch.tensor([speaker]))
    return nats
