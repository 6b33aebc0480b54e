"""Servers as processes of their own, for tests."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from urllib.request import urlopen

import openai
import torch

from chatbot.checkpoint.folder import resolve, save
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.tokenizer import DialogueTokenizer
from tests.chatbot.model.test_latent import latent_model
from tests.conftest import ROOT, tiny_config

LAYERS = 96
HELLO = [{"role": "user", "content": "你好"}]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def serving(folder: Path, *arguments: str, port: int | None = None):
    """`python -m ui` on a port; yields its address and process when it is ready."""
    port = port or free_port()
    address, started = f"http://127.0.0.1:{port}", time.monotonic()
    command = [sys.executable, "-m", "ui", "--port", str(port), *arguments]
    with open(folder / "stdout", "ab") as stdout, open(folder / "stderr", "ab") as stderr:
        process = subprocess.Popen(command, cwd=ROOT, stdout=stdout, stderr=stderr)
        try:
            while not answers(address):
                assert process.poll() is None, (folder / "stderr").read_text()
                assert time.monotonic() < started + 300
                time.sleep(0.1)
            yield address, process
        finally:
            process.kill()
            process.wait()


def answers(address: str) -> bool:
    try:
        return json.load(urlopen(f"{address}/healthz", timeout=2))["status"] == "ok"
    except OSError:
        return False


def client_of(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0, timeout=30)


def reply_of(address: str, seed: int = 1) -> str:
    with client_of(address) as client:
        answer = client.chat.completions.create(model="default", messages=HELLO, seed=seed)
    return answer.choices[0].message.content


def endless_checkpoint(folder: Path, name: str = "endless", tokens: int = 4000, layers: int = LAYERS) -> Path:
    """A checkpoint whose replies have many tokens, by default the most that are allowed; with many layers one lasts long."""
    torch.manual_seed(0)
    tokenizer = DialogueTokenizer.load(resolve("default"))
    sizes = {"hidden_size": 256, "num_hidden_layers": layers, "num_attention_heads": 4, "head_dim": 64}
    kinds = {"intermediate_size": 1024, "layer_types": ["linear_elu1"] * layers, "initializer_range": 0.02}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **sizes, **kinds)).eval()
    settings = {"floor_start_tokens": tokens, "floor_delta_tokens": 32, "min_reply_tokens": tokens}
    save(folder / name, model, tokenizer, settings, {"step": 0}, int8=True)
    return folder / name


def latent_checkpoint(folder: Path, name: str = "varied") -> Path:
    """A random checkpoint with a Gaussian latent and short replies, which depend on z."""
    tokenizer = DialogueTokenizer.load(resolve("default"))
    model = latent_model(tokenizer, skips=2.0)
    for mlp in (model.latent.prior_mlp, model.latent.recognition_mlp):
        mlp[2].weight.data *= 0.05  # so that the ellipses are about as large as the unit ball
    save(folder / name, model, tokenizer, {"floor_start_tokens": 8, "floor_delta_tokens": 4}, {"step": 0})
    return folder / name
