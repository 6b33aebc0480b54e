"""Every form of the int8 product gives the network's logits, whatever instructions a processor has."""

from __future__ import annotations

import platform
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from chatbot.decoding.batch import make_native, start_batch
from chatbot.model.network import XianliaoForCausalLM
from chatbot.native import library
from tests.conftest import tiny_config

WITHOUT = {
    "all of this processor": (),
    "AVX-512 without VNNI": ("-mno-avx512vnni",),
    "AVX-512F alone": ("-mno-avx512vnni", "-mno-avx512bw", "-mno-avx512dq", "-mno-avx512vl"),
    "AVX2": ("-mno-avx512f",),
    "no vector instructions of its own": ("-mno-avx512f", "-mno-avx2", "-mno-avx", "-mno-fma"),
}


def logits_of(model: XianliaoForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    batch = start_batch(model, len(ids))
    speakers = torch.zeros_like(ids)
    return torch.stack([batch(ids[:, t], speakers[:, t]) for t in range(ids.shape[1])])


PRODUCTS = {
    "AVX-512 with VNNI": (("-march=cascadelake",), "vpdpbusd", "zmm"),
    "AVX-512 without VNNI": (("-march=skylake-avx512",), "vpmaddubsw", "zmm"),
    "AVX-512F alone": (("-march=haswell", "-mavx512f", "-mavx512cd"), "vpmaddubsw", "ymm"),
    "AVX2": (("-march=haswell",), "vpmaddubsw", "ymm"),
    "SSE2": (("-march=x86-64",), "pmaddwd", "xmm"),
}
"""Flags of the processor, the instruction that multiplies its bytes, and the registers of its operands."""


@pytest.mark.skipif(
    platform.machine() != "x86_64" or shutil.which("gcc") is None, reason="reads gcc's assembly for x86"
)
@pytest.mark.parametrize("name", PRODUCTS)
def test_no_processor_multiplies_int8_byte_by_byte(name, tmp_path):
    """Whatever this processor is, the compiler makes the vector form of every other one."""
    flags, instruction, register = PRODUCTS[name]
    command = [
        "gcc",
        "-O1",
        "-mprefer-vector-width=512",
        *flags,
        "-S",
        str(library.SOURCE),
        "-o",
        str(tmp_path / "step.s"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    lines = (tmp_path / "step.s").read_text().splitlines()
    assert sum(line.split()[:1] == [instruction] and register in line for line in lines) >= 4


@pytest.mark.slow
@pytest.mark.skipif(library.library() is None or sys.platform != "linux", reason="no C compiler here")
@torch.inference_mode()
def test_int8_products_agree_on_every_instruction_set(tokenizer, monkeypatch, tmp_path):
    """Weights and inputs at their largest, where a product that saturates would show."""
    if "avx512bw" not in Path("/proc/cpuinfo").read_text():
        for name in ("AVX-512 without VNNI", "AVX-512F alone"):
            WITHOUT.pop(name, None)
    ids = torch.randint(3, tokenizer.vocab_size, (5, 24), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    shape = {"hidden_size": 128, "head_dim": 32, "num_attention_heads": 4, "intermediate_size": 512}
    model = XianliaoForCausalLM(tiny_config(tokenizer, **shape, initializer_range=0.05)).eval()
    for parameter in model.blocks.parameters():
        if parameter.ndim == 2:
            parameter.data = 0.05 * parameter.data.sign()
    outputs = {}
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for name, flags in WITHOUT.items():
        with monkeypatch.context() as patch:
            patch.setattr(library, "TARGETS", (("-march=native", *flags),))
            library.library.cache_clear()
            assert make_native(model, int8=True), name
            outputs[name] = logits_of(model, ids)
    library.library.cache_clear()
    reference = outputs.pop("all of this processor")
    assert len(outputs) >= 2
    for name, logits in outputs.items():
        torch.testing.assert_close(logits, reference, rtol=2e-4, atol=2e-4 * reference.abs().max().item(), msg=name)
