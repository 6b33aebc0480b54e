"""What a run says of itself: metrics.jsonl, samples.jsonl, TensorBoard, curves.png."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from chatbot.storage import replacing
from training.data.turn_store import TurnStore
from training.settings import SettingsError

METRICS, SAMPLES = "metrics.jsonl", "samples.jsonl"
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
