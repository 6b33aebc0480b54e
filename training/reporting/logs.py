"""Logs of a run: metrics.jsonl, samples.jsonl, TensorBoard and messages on stderr."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from tqdm import tqdm

from chatbot.language.translation import translate
from chatbot.storage import replacing
from training.data.turn_store import TurnStore
from training.reporting.samples import SampleMessage
from training.settings import SettingsError
from training.state.run_folder import METRICS, SAMPLES, read_log

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class Log:
    """JSON Lines file of a run. Opening it drops the entries of an earlier, stopped run after `last_step`."""

    def __init__(self, path: Path, last_step: int):
        self.path = path
        entries = [entry for entry in read_log(path) if entry["step"] <= last_step]
        with replacing(path) as temporary:
            text = "".join(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
            temporary.write_text(text, encoding="utf-8")

    def add(self, **entry: object) -> None:
        """Append an entry."""
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry, ensure_ascii=False) + "\n")


class RunLogs:
    """All logs of a run; in processes other than the first, every method does nothing.

    Args:
        output: Folder of the run.
        last_step: Steps taken before; later entries of an earlier run are dropped.
        tensorboard: Whether to write to OUTPUT/tensorboard as well.
        is_main: Whether this is the first process.

    Raises:
        SettingsError: tensorboard is not installed.
    """

    def __init__(self, output: Path, last_step: int, tensorboard: bool, is_main: bool):
        self.is_main = is_main
        self._board: SummaryWriter | None = None
        if is_main:
            self._metrics, self._samples = Log(output / METRICS, last_step), Log(output / SAMPLES, last_step)
            self._board = open_tensorboard(output, last_step) if tensorboard else None

    def add_metrics(self, entry: dict[str, float]) -> None:
        """Write the metrics of a step."""
        if not self.is_main:
            return
        self._metrics.add(**entry)
        if self._board is not None:
            for name, value in entry.items():
                self._board.add_scalar(name, value, int(entry["step"]))

    def add_sample(self, step: int, message: SampleMessage, reply: str) -> None:
        """Write a reply of the model in training."""
        if not self.is_main:
            return
        reference = {} if message.reference is None else {"reference": message.reference}
        self._samples.add(step=step, prompt=message.prompt, reply=reply, **reference)
        if self._board is not None:
            self._board.add_text(message.prompt[-1], reply, step)

    def message(self, text: str) -> None:
        """Print a line on stderr, above the progress bar."""
        if self.is_main:
            tqdm.write(translate(text), file=sys.stderr)

    def close(self) -> None:
        """Flush and close TensorBoard's file."""
        if self._board is not None:
            self._board.close()


def read_metrics(output: Path) -> list[dict]:
    """Return the entries of a run's metrics.jsonl."""
    return read_log(output / METRICS)


def open_tensorboard(output: Path, last_step: int) -> SummaryWriter:
    """Return a TensorBoard writer for OUTPUT/tensorboard.

    Raises:
        SettingsError: tensorboard is not installed.
    """
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:
        raise SettingsError("--tensorboard needs the package: pip install 'xianliao[tensorboard]'.") from None
    return SummaryWriter(str(output / "tensorboard"), purge_step=last_step + 1)


def unigram_nats(train: TurnStore, valid: list[list[list[int]]], end_id: int, vocab_size: int) -> float:
    """Return the nats of validation dialogues under the token frequencies of the training turns (add-one smoothing).

    A trained model must be below this baseline.

    Args:
        train: Training turns.
        valid: Token ids of the turns of each validation dialogue.
        end_id: Id of the end of turn, counted once per turn.
        vocab_size: V.
    """
    counts = train.token_counts(vocab_size).astype(float) + 1
    counts[end_id] += len(train.turn_starts) - 1
    nats = -np.log(counts / counts.sum())
    return sum(float(nats[turn].sum() + nats[end_id]) for turns in valid for turn in turns)
