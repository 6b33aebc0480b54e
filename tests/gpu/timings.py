"""Times on a device: training steps beside GPT-2 and fla's own model, serving, and the recipe for the time that is left."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path

import torch

from chatbot.chat.bot import Chatbot
from chatbot.text.tokenizer import DialogueTokenizer
from tests.benchmarks import serving_speed
from tests.benchmarks.peers import SIZES, VOCABULARY, gpt2, multiplied, ours
from tests.chat_models import write_chat_model
from tests.conftest import ROOT, SAMPLES
from tests.gpu.machine import Machine

SERVED = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 6, "head_dim": 64}


def training(machine: Machine) -> Iterator[str]:
    """Measure an optimizer step of our model, GPT-2 with SDPA and fla's GLA, with the share of the matmul peak (MFU)."""
    peak = machine.matmul_flops()
    yield f"matmul peak {peak / 1e12:.3g} TFLOP/s, {str(machine.dtype).removeprefix('torch.')}"
    for size in ("12M",) if machine.is_tiny else SIZES:
        rows, length = (1, 64) if machine.is_tiny else (16, 1024)
        ids = torch.randint(3, VOCABULARY, (rows, length), device=machine.device)
        builds: dict[str, Callable[[], torch.nn.Module | None]] = {
            "ours": lambda size=size: ours(size),
            "GPT-2": lambda size=size, length=length: gpt2(size, positions=length),
            "fla GLA": lambda size=size: _gla(machine, size),
        }
        for name, build in builds.items():
            model = build()
            if model is None:
                yield f"{size} {name}: needs CUDA and flash-linear-attention"
                continue
            model.to(machine.device).train()
            optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=machine.device == "cuda")

            def step(model=model, optimizer=optimizer, ids=ids) -> None:
                with torch.autocast(machine.device, machine.dtype, enabled=machine.device == "cuda"):
                    loss = model(input_ids=ids, labels=ids).loss
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()

            seconds = machine.seconds(step, 1 if machine.is_tiny else 5)
            share = 6 * multiplied(model) * ids.numel() / seconds / peak
            yield f"{size} {name}: {seconds * 1e3:.1f} ms, {ids.numel() / seconds:,.0f} tokens/s, MFU {share:.1%}"
            del model, optimizer


def _gla(machine: Machine, size: str) -> torch.nn.Module | None:
    """Return fla's own model class at a size, or None without CUDA or the package."""
    if machine.device != "cuda" or find_spec("fla") is None:
        return None
    from fla.models import GLAConfig, GLAForCausalLM

    width, layers = SIZES[size]
    shape = {"hidden_size": width, "num_hidden_layers": layers, "num_heads": width // 64, "vocab_size": VOCABULARY}
    return GLAForCausalLM(GLAConfig(**shape, fuse_cross_entropy=False))


def serving(machine: Machine) -> Iterator[str]:
    """Measure tokens per second of 1, 16 and 64 conversations, with our model and a Qwen-shaped one."""
    with tempfile.TemporaryDirectory() as folder:
        for name, bot in (("12M ours", _our_bot(machine)), ("12M Qwen-shaped", _qwen_bot(machine, Path(folder)))):
            speeds = []
            for conversations in (1, 2) if machine.is_tiny else (1, 16, 64):
                serving_speed.tokens_per_second(bot, 1)  # warm-up
                started = machine.now()
                serving_speed.tokens_per_second(bot, conversations)
                seconds = machine.now() - started
                speeds.append(f"{conversations}: {conversations * (serving_speed.REPLY + 1) / seconds:,.0f}")
            yield f"{name}, tokens/s by conversations: {', '.join(speeds)}"


def _our_bot(machine: Machine) -> Chatbot:
    tokenizer = DialogueTokenizer.train(serving_speed.texts(), vocab_size=700)
    return serving_speed.bot_of(ours().eval().to(machine.device, machine.dtype), tokenizer)


def _qwen_bot(machine: Machine, folder: Path) -> Chatbot:
    heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
    limits = {"vocab_size": VOCABULARY, "max_position_embeddings": 4096}
    write_chat_model(folder / "qwen3", serving_speed.texts(), "qwen3", **SERVED, **heads, **limits)
    bot = Chatbot.from_pretrained(folder / "qwen3", machine.device)
    bot.settings = serving_speed.SETTINGS
    return bot


def recipe(machine: Machine, seconds: float) -> Iterator[str]:
    """Train on the sample dialogues with the largest preset that fits for some time, and show a reply.

    The whole recipe of the bundled bot is checkpoints/recipe/make.sh; this shows that its commands work on the device.

    Args:
        machine: The machine.
        seconds: Time for it.
    """
    preset = "cpu_smoke" if machine.is_tiny else "small"
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        prepare = ["-m", "data_prep", "--input", str(SAMPLES), "--output", str(folder / "set"), "--vocab-size", "700"]
        subprocess.run([sys.executable, *prepare], cwd=ROOT, check=True, capture_output=True)
        options = ["--config", f"training/presets/{preset}.yaml", "--device", machine.device]
        tiny = ["--max-steps", "2", "--eval-every", "2", "--save-every", "2", "--threads", "1"]
        options += tiny if machine.is_tiny else ["--precision", "bf16"]
        paths = ["--data", str(folder / "set"), "--output", str(folder / "run")]
        call = [sys.executable, "-m", "training", *paths, *options]
        with subprocess.Popen(call, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            try:
                output, _ = process.communicate(timeout=seconds)
            except subprocess.TimeoutExpired:
                process.send_signal(signal.SIGINT)  # it stops after its step and saves
                output, _ = process.communicate(timeout=60)
        assert (folder / "run" / "model.safetensors").is_file(), output.strip().splitlines()[-1][:300]
        lines = [json.loads(line) for line in (folder / "run" / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        yield f"{preset}: {len(losses)} logged steps, loss {losses[0]:.2f} to {losses[-1]:.2f}"
        reply = Chatbot.from_pretrained(folder / "run", machine.device).reply(["你好"], seed=0)
        yield f"你好 → {reply}"
