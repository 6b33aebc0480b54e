"""A tiny tokenizer and model, made once, shared by the whole session."""

from __future__ import annotations

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # nothing is downloaded
os.environ["OMP_NUM_THREADS"] = "1"  # tiny models are fastest alone
os.environ["XIANLIAO_LANG"] = "en"  # whatever the language of the machine

import gc
import json
import signal
from collections.abc import Iterator
from pathlib import Path

import hypothesis
import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.model.config import XianliaoConfig
from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.layouts import DialogptLayout
from chatbot.text.tokenizer import DialogueTokenizer

# how long an example takes says how busy the machine is, not whether the code is right
hypothesis.settings.register_profile(
    "any speed", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("any speed")

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    # A shell starts background jobs with Ctrl+C ignored; tests that send a real SIGINT need Python's handler.
    signal.signal(signal.SIGINT, signal.default_int_handler)

ROOT = Path(__file__).resolve().parent.parent
SAMPLES = ROOT / "data_prep" / "samples"

LONGEST = (
    "chatbot/chat/test_default_behaviour.py",
    "training/test_recipe.py",
    "test_browser_studio.py",
    "chatbot/checkpoint/test_export_onnx.py",
    "test_pipeline.py",
    "attack/test_figures.py",
    "test_browser.py",
    "test_browser_page.py",
    "lite/test_targets.py",
    "lite/test_page.py",
    "lite/test_parity.py",
    "test_wheel.py",
    "gpu/test_run.py",
    "training/test_resume.py",
    "chatbot/native/test_sanitizers.py",
    "training/test_processes.py",
    "test_docs.py",
)
"""Files whose slow tests take longest. They come first: otherwise the last one would run alone, on one core."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {ROOT / "tests" / name: number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: order.get(item.path, len(order)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """The imports of all tests make a million objects, which live until the end: the garbage collector skips them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


@pytest.fixture(scope="session")
def dialogues() -> list[list[str]]:
    lines = (SAMPLES / "everyday.jsonl").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="session")
def tokenizer(dialogues) -> DialogueTokenizer:
    return DialogueTokenizer.train((turn for turns in dialogues for turn in turns), vocab_size=700)


@pytest.fixture(scope="session")
def layout(tokenizer) -> DialogptLayout:
    return DialogptLayout(tokenizer)


def tiny_config(tokenizer: DialogueTokenizer, **changes) -> XianliaoConfig:
    sizes = {
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "head_dim": 16,
        "intermediate_size": 64,
    }
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    mixers = {"layer_types": ["linear_gated", "linear_decay"], "chunk_size": 16, "output_gate": False, "short_conv": 0}
    return XianliaoConfig(**{"vocab_size": tokenizer.vocab_size, **sizes, **ids, **mixers, **changes})


@pytest.fixture(scope="session")
def model(tokenizer) -> XianliaoForCausalLM:
    """Random weights, large enough that its distributions are not flat."""
    torch.manual_seed(0)
    return XianliaoForCausalLM(tiny_config(tokenizer, initializer_range=0.3)).eval()


@pytest.fixture
def bot(model, tokenizer) -> Chatbot:
    return Chatbot(model, tokenizer, ReplySettings(floor_start_tokens=12, floor_delta_tokens=4), "tiny")


@pytest.fixture(scope="session")
def checkpoint(model, tokenizer, tmp_path_factory) -> Path:
    from chatbot.checkpoint.folder import save

    folder = tmp_path_factory.mktemp("checkpoint") / "tiny"
    save(folder, model, tokenizer, {"floor_start_tokens": 12, "floor_delta_tokens": 4}, {"step": 0})
    return folder


@pytest.fixture(scope="session")
def prepared(tmp_path_factory) -> Path:
    from data_prep.pipeline import build
    from data_prep.settings import PrepareSettings

    folder = tmp_path_factory.mktemp("prepared") / "set"
    build([str(SAMPLES)], folder, PrepareSettings(vocab_size=700, valid_share=0.1))
    return folder
