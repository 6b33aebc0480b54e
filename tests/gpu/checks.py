"""Checks on a device: every mixer against its definition, packing, batches, resuming, sharding and compiling."""

from __future__ import annotations

import hashlib
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch

from chatbot.chat.bot import Chatbot
from chatbot.chat.worker import Worker
from chatbot.decoding.settings import ReplySettings
from chatbot.model.attention import fused
from chatbot.model.config import XianliaoConfig
from chatbot.model.layer_types import LAYER_TYPES
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer
from data_prep.pipeline import build
from data_prep.settings import PrepareSettings
from tests.benchmarks.serving_speed import texts
from tests.conftest import ROOT, SAMPLES
from tests.gpu.machine import Machine
from tests.training.test_resume import FLAGS, as_flags, command

FP32_TOLERANCE = 1e-3
"""Largest allowed distance of losses and gradients in fp32, relative to those of the definition."""

BF16_FACTOR = 2.0
"""In bf16 the training form may be this much farther from the definition in fp32 than the definition in bf16 is."""

FAMILIES = ("linear_gated", "gated_delta", "linear_elu1", "softmax", "sliding_softmax")
"""Mixers of the tiny form."""


def network(machine: Machine, mixer: str, vocab_size: int = 512) -> XianliaoForCausalLM:
    """Return a random model of two layers of a mixer, in evaluation mode on the device."""
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "num_hidden_layers": 2, "num_attention_heads": 2, "head_dim": 64}
    config = XianliaoConfig(
        vocab_size=vocab_size, intermediate_size=256, layer_types=[mixer] * 2, initializer_range=0.1, **shape
    )
    return XianliaoForCausalLM(config).eval().to(machine.device)


def mixers(machine: Machine) -> Iterator[str]:
    """Compare loss and gradients of the training form of every mixer with its definition, in fp32 and bf16."""
    yield f"kernels of flash-linear-attention: {'used' if fused.installed() else 'not installed'}"
    for mixer in FAMILIES if machine.is_tiny else LAYER_TYPES:
        model = network(machine, mixer)
        length = 63 if machine.is_tiny else 500
        ids = torch.randint(3, 512, (2, length), generator=torch.Generator().manual_seed(1)).to(machine.device)
        reference = _loss_and_gradients(model, ids, "naive", None)
        exact = _distance(_loss_and_gradients(model, ids, "auto", None), reference)
        rounding, half = (
            _distance(_loss_and_gradients(model, ids, form, torch.bfloat16), reference) for form in ("naive", "auto")
        )
        yield f"{mixer}: fp32 {exact:.1e}, bf16 {half:.1e} (definition in bf16: {rounding:.1e})"
        assert exact <= FP32_TOLERANCE, f"{mixer} in fp32 is {exact:.1e} from its definition"
        assert half <= BF16_FACTOR * rounding, f"{mixer} in bf16 is {half:.1e} from its definition, not {rounding:.1e}"


def _loss_and_gradients(
    model: XianliaoForCausalLM, ids: torch.Tensor, form: str, dtype: torch.dtype | None
) -> tuple[torch.Tensor, torch.Tensor]:
    model.zero_grad()
    with torch.autocast(ids.device.type, dtype, enabled=dtype is not None):
        loss = model(input_ids=ids, labels=ids, form=form).loss
    loss.backward()
    return loss.detach(), torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def _distance(one: tuple[torch.Tensor, torch.Tensor], other: tuple[torch.Tensor, torch.Tensor]) -> float:
    return max(float((a - b).norm() / b.norm()) for a, b in zip(one, other, strict=True))


@torch.inference_mode()
def packing(machine: Machine) -> Iterator[str]:
    """Compare two dialogues in one row with each alone."""
    worst = 0.0
    for mixer in FAMILIES:
        model = network(machine, mixer)
        ids = torch.randint(3, 512, (1, 90), generator=torch.Generator().manual_seed(2)).to(machine.device)
        segments = torch.tensor([[0] * 33 + [1] * 57], device=machine.device)
        packed = model(ids, segment_ids=segments).logits
        alone = torch.cat([model(ids[:, :33]).logits, model(ids[:, 33:]).logits], 1)
        worst = max(worst, float((packed - alone).norm() / alone.norm()))
    yield f"largest relative difference of logits: {worst:.1e}"
    assert worst <= FP32_TOLERANCE, f"a dialogue changes the logits of its neighbour by {worst:.1e}"


def batches(machine: Machine) -> Iterator[str]:
    """Count the conversations whose reply in a shared batch equals their reply alone, in fp32."""
    tokenizer = DialogueTokenizer.train(texts(), vocab_size=600)
    count = 4 if machine.is_tiny else 64
    for mixer in ("linear_elu1", "softmax"):
        bot = Chatbot(network(machine, mixer, tokenizer.vocab_size), tokenizer, ReplySettings(max_reply_tokens=16))
        messages = (texts() * 4)[:count]
        alone = [bot.respond([message], seed).token_ids for seed, message in enumerate(messages)]
        bot.snapshots.clear()
        worker = Worker(bot)
        try:
            streams = [worker.stream_replies([message], seed) for seed, message in enumerate(messages)]
            together = [list(stream)[-1].token_ids for stream in streams]
        finally:
            worker.close()
        same = sum(a == b for a, b in zip(alone, together, strict=True))
        yield f"{mixer}: {same} of {count} replies are the same"
        assert machine.device != "cpu" or same == count, f"{mixer}: only {same} of {count} replies are the same"


def runs(machine: Machine) -> Iterator[str]:
    """Train: stop and resume to the same weights, one process of DDP and of FSDP2, and a compiled model."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        build([str(SAMPLES)], folder / "set", PrepareSettings(vocab_size=700, valid_share=0.1))
        steps = {"max_steps": 4, "save_every": 2, "eval_every": 4}
        whole = _train(machine, folder, "whole", **steps)
        yield f"4 steps: {whole}"
        (newest,) = (folder / "whole" / "resume").glob("step-*4")
        for file in newest.iterdir():
            file.unlink()
        newest.rmdir()
        resumed = _train(machine, folder, "whole", "--resume", **steps)
        yield f"stopped at 2 and resumed: {resumed}, {'the same' if resumed == whole else 'OTHER'} weights"
        assert resumed == whole or machine.device == "cuda", "a resumed run has other weights"
        yield f"DDP of 1: {_train(machine, folder, 'ddp', launcher=True, **steps)}"
        yield f"FSDP2 of 1: {_train(machine, folder, 'fsdp', module='tests.training.sharded', launcher=True, **steps)}"
        if not machine.is_tiny:
            yield f"compiled: {_train(machine, folder, 'compiled', compile=True, **steps)}"
        else:
            yield "compiled: only on a GPU, because compiling takes a minute on a CPU"


def _train(
    machine: Machine,
    folder: Path,
    output: str,
    *options: str,
    module: str = "training",
    launcher: bool = False,
    **changes,
) -> str:
    """Run xianliao-train and return the beginning of the hash of its weights.

    Raises:
        AssertionError: The run failed.
    """
    flags = {**FLAGS, "device": machine.device, "row_tokens": 64, **changes}
    launched = command(2 if launcher else 1, module)
    launched = ["1" if part == "2" else part for part in launched]  # one process, but with a process group
    paths = ["--data", str(folder / "set"), "--output", str(folder / output)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    if machine.device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    done = subprocess.run(
        [*launched, *paths, *as_flags(flags), *options],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{output}: {(done.stderr.strip().splitlines() or ['?'])[-1][:300]}"
    return hashlib.sha256((folder / output / "model.safetensors").read_bytes()).hexdigest()[:12]
