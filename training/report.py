"""What a run says of itself: metrics.jsonl, samples.jsonl, TensorBoard, curves.png."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import numpy as np
import psutil
import torch
from torch import nn

from chatbot.storage import replacing
from training.batching import TurnStore
from training.settings import SettingsError

METRICS, SAMPLES, CURVES = "metrics.jsonl", "samples.jsonl", "curves.png"
PROMPTS = (["你好"], ["今天好累啊"], ["你喜欢吃什么"], ["你是谁"], ["周末去哪玩", "还没想好", "一起看电影吧"])
"""What a model in training is asked at every validation."""


class Log:
    """Appends one JSON object a line; entries after `last_step` of an earlier, stopped run are dropped."""

    def __init__(self, path: Path, last_step: int):
        self.path = path
        kept = [entry for entry in read_log(path) if entry["step"] <= last_step]
        with replacing(path) as temporary:
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in kept)
            temporary.write_text(text, encoding="utf-8")

    def add(self, **entry: object) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


def read_log(path: Path) -> list[dict]:
    """Entries of a log; a last line that was cut by a crash is passed over."""
    entries = []
    if path.is_file():
        for line in path.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue
            if isinstance(entry, dict) and isinstance(entry.get("step"), int):
                entries.append(entry)
    return entries


def read_metrics(output: Path) -> list[dict]:
    """Entries of a run's metrics.jsonl."""
    return read_log(output / METRICS)


def open_tensorboard(output: Path, last_step: int):
    """A TensorBoard writer for OUTPUT/tensorboard.

    Raises:
        SettingsError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError("--tensorboard needs the package: pip install 'xianliao[tensorboard]'.") from None
    return SummaryWriter(str(output / "tensorboard"), purge_step=last_step + 1)


def unigram_nats(train: TurnStore, valid: list[list[list[int]]], end_id: int, vocab_size: int) -> float:
    """Nats that a model of nothing but token frequencies needs for the validation dialogues: every model must beat it."""
    counts = train.token_counts(vocab_size).astype(float) + 1
    counts[end_id] += len(train.turn_starts) - 1
    nats = -np.log(counts / counts.sum())
    return sum(float(nats[turn].sum() + nats[end_id]) for turns in valid for turn in turns)


def flops_per_token(model: nn.Module) -> int:
    """Floating point operations of a training step for each token: 6 a weight that tokens are multiplied with, 4 if frozen.

    What attention itself computes is left out, so that utilisation is understated rather than overstated.
    """
    weights = [module.weight for module in model.modules() if isinstance(module, nn.Linear)]
    return sum((6 if weight.requires_grad else 4) * weight.numel() for weight in weights)


def matmul_peak(device: torch.device, dtype: torch.dtype, seconds: float = 0.2) -> float:
    """Floating point operations a second of a large matrix product here and now: what utilisation is measured against."""
    size = 1024 if device.type == "cpu" else 8192
    a = torch.randn(size, size, device=device, dtype=dtype)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    best, stop = 0.0, time.perf_counter() + seconds
    a @ a
    while time.perf_counter() < stop:
        synchronize()
        start = time.perf_counter()
        a @ a
        synchronize()
        best = max(best, 2 * size**3 / (time.perf_counter() - start))
    return best


def memory_gigabytes(device: torch.device) -> float:
    """Largest memory of the device so far on CUDA, memory of the process elsewhere."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return psutil.Process(os.getpid()).memory_info().rss / 1e9


def draw_curves(output: Path, unigram: float | None = None) -> None:
    """Loss, validation, learning rate and gradient norm over the steps, as curves.png.

    Args:
        output: Folder of the run.
        unigram: nats/unit of a unigram model, drawn beside the validation.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    entries = read_metrics(output)
    figure = Figure(figsize=(11, 3.4), layout="constrained")
    FigureCanvasAgg(figure)
    plots = (
        ("training loss", "nats/token", "loss", False),
        ("validation", "nats/unit", "valid_nats_per_unit", False),
        ("gradient norm before clipping", "", "gradient_norm", True),
        ("learning rate", "", "learning_rate", False),
    )
    for axes, (title, unit, key, logarithmic) in zip(figure.subplots(1, len(plots)), plots, strict=True):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        axes.plot(*zip(*points, strict=True) if points else ([], []), marker="." if len(points) < 40 else None)
        axes.set(title=title, xlabel="step", ylabel=unit)
        if logarithmic and points:
            axes.set_yscale("log")
        if key == "valid_nats_per_unit" and unigram is not None:
            axes.axhline(unigram, linestyle=":", color="gray")
            axes.annotate("unigram", (0, unigram), color="gray", va="bottom")
    with replacing(output / CURVES) as temporary:
        figure.savefig(temporary, format="png", dpi=110)
