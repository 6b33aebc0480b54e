"""Compare training speed with GPT-2 and a nanoGPT-style model, and useful tokens with a Trainer that pads."""

from __future__ import annotations

import tempfile

import numpy as np
import torch
from transformers import Trainer, TrainingArguments

from chatbot.model.layer_types import repeat_layer_types
from chatbot.text.layouts import IGNORED_LABEL
from tests.benchmarks.measure import Row, alternate, matmul_peak, throughput_row
from tests.benchmarks.peers import VOCABULARY, NanoGPT, gpt2, multiplied, ours
from training.data.packing import pack

TOKENS = 4096
WITHOUT_EXTRAS = {"output_gate": False, "short_conv": 0}
LEAN = "linear_elu1:sliding 3:1"
"""The fastest mixers, without gate and convolution, that on average reach a lower loss than plain softmax."""
TARGETS = {256: 1.1, 1024: 1.3, 4096: 1.9}


def step_rows(rounds: int = 5, lengths: tuple[int, ...] = tuple(TARGETS)) -> list[Row]:
    """Measure an optimizer step over 4,096 tokens at several row lengths, and its share of the matmul peak."""
    rows = []
    lean = ours(layer_types=repeat_layer_types(["linear_elu1"] * 3 + ["sliding_softmax"], 6), **WITHOUT_EXTRAS)
    networks = {"ours": ours(), "lean": lean, "GPT-2": gpt2(positions=4096), "nanoGPT": NanoGPT()}
    optimizers = {name: torch.optim.AdamW(net.parameters(), lr=1e-4, fused=True) for name, net in networks.items()}
    for length in lengths:
        ids = torch.randint(3, VOCABULARY, (TOKENS // length, length))

        def step(name: str, ids: torch.Tensor = ids) -> None:
            output = networks[name](input_ids=ids, labels=ids)
            (output if name == "nanoGPT" else output.loss).backward()
            optimizers[name].step()
            optimizers[name].zero_grad()

        peaks = [matmul_peak()]
        seconds = alternate({name: lambda name=name: step(name) for name in networks}, rounds)
        peaks.append(matmul_peak())
        task = f"training 12M, rows of {length}"
        rows.append(throughput_row(task, "GPT-2", TOKENS, seconds["ours"], seconds["GPT-2"], TARGETS.get(length)))
        rows.append(
            throughput_row(f"{task}, {LEAN}", "GPT-2", TOKENS, seconds["lean"], seconds["GPT-2"], TARGETS.get(length))
        )
        rows.append(throughput_row(task, "nanoGPT", TOKENS, seconds["ours"], seconds["nanoGPT"]))
        peak = sum(peaks) / 2
        for name, label in (("ours", task), ("lean", f"{task}, {LEAN}")):
            reached = 6 * multiplied(networks[name]) * TOKENS / seconds[name]
            label = f"{label}: share of the matmul peak"
            rows.append(Row(label, "GFLOP/s", reached / 1e9, peak / 1e9, "1,024³ matmul", reached / peak, 0.75))
    return rows


def padded_row(rounds: int = 3, lengths: list[int] | None = None, rows: int = 8) -> Row:
    """Measure useful tokens/s on dialogues of LCCC's lengths: our packed rows of 512 against a Trainer that pads."""
    lengths = lccc_like_lengths() if lengths is None else lengths
    packed = pack(np.array(lengths), 512, np.random.default_rng(0).permutation(len(lengths)))[:rows]
    used = sum(lengths[index] for row in packed for index in row)
    ids = torch.randint(3, VOCABULARY, (rows, 512))
    segments = torch.zeros_like(ids)
    for number, row in enumerate(packed):
        end = 0
        for segment, index in enumerate(row):
            segments[number, end:] = segment
            end += lengths[index]
    model = ours()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=True)

    def packed_step() -> None:
        model(input_ids=ids, segment_ids=segments, labels=ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    peer = gpt2(positions=1024)
    chosen = torch.randperm(len(lengths), generator=torch.Generator().manual_seed(0))[:64].tolist()
    data = [{"input_ids": torch.randint(3, VOCABULARY, (lengths[index],))} for index in chosen]

    def collate(samples: list[dict]) -> dict[str, torch.Tensor]:
        padded = torch.nn.utils.rnn.pad_sequence([s["input_ids"] for s in samples], batch_first=True)
        mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(s["input_ids"]) for s in samples], batch_first=True)
        return {"input_ids": padded, "attention_mask": mask, "labels": padded.masked_fill(mask == 0, IGNORED_LABEL)}

    def trainer_steps() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                folder, per_device_train_batch_size=32, num_train_epochs=1, save_strategy="no", report_to=[],
                logging_strategy="no", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
            )  # fmt: skip
            Trainer(peer, arguments, train_dataset=data, data_collator=collate).train()

    seconds = alternate({"ours": packed_step, "Trainer": trainer_steps}, rounds)
    useful = sum(lengths[index] for index in chosen)
    mine, theirs = used / seconds["ours"], useful / seconds["Trainer"]
    return Row(
        "useful tokens on LCCC lengths", "tokens / CPU s", mine, theirs, "padded Trainer, GPT-2", mine / theirs, 4
    )


def lccc_like_lengths(count: int = 4000) -> list[int]:
    """Return log-normal lengths in tokens with LCCC's median of 28 and its tail (99th percentile near 380)."""
    draws = torch.empty(count).log_normal_(3.33, 1.12, generator=torch.Generator().manual_seed(0))
    return [int(value) for value in draws.clamp(6, 512)]
