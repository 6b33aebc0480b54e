"""The training loop: packed batches, accumulation, one clip a step, validation in nats/unit, atomic saves."""

from __future__ import annotations

import hashlib
import json
import math
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import count
from pathlib import Path

import numpy as np
import torch
import transformers
from accelerate import Accelerator
from tqdm import tqdm

from chatbot import __version__
from chatbot.bot import pick_device
from chatbot.checkpoint import TRAINING, load_model, read_json, resolve, save
from chatbot.configuration import XianliaoConfig
from chatbot.dialogue import LAYOUTS
from chatbot.dialogue_files import load_manifest
from chatbot.errors import last_line
from chatbot.evaluation.quality import Quality, measure_quality
from chatbot.layer_types import repeat_layer_types
from chatbot.model import XianliaoForCausalLM
from chatbot.sampling import ReplySettings
from chatbot.tokenizer import DialogueTokenizer
from training.batching import PackedData, TurnStore
from training.clipping import clip_gradients
from training.lora import add_lora
from training.memory import keep_freed_memory
from training.optimizers import build_optimizers
from training.report import METRICS, MetricsLog, draw_curves
from training.resume import FOLDER, ResumeError, load_progress, load_state, save_state, saved_steps
from training.settings import ModelSettings, SettingsError, TrainSettings

SHAPE = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size", "layer_types"),
    *("short_conv", "output_gate", "positions", "linear_rope", "max_position_embeddings", "sliding_window"),
)
REPLY_LENGTH_PERCENTILE = 99
"""t0 of the EOS floor: this percentile of the turn length in tokens on the validation split."""


def train(settings: TrainSettings) -> dict:
    """Runs (or continues) a training run and returns the content of its training.json.

    Raises:
        SettingsError, FileError, CheckpointError, ResumeError: What the person has to change, in one sentence.
    """
    settings.check()
    pick_device(settings.device)
    manifests = [load_manifest(folder) for folder in settings.data]
    if len({manifest["tokenizer_hash"] for manifest in manifests}) > 1:
        raise SettingsError("The prepared sets have different tokenizers; prepare them with one --tokenizer.")
    output = Path(settings.output)
    identity = _identity(settings, manifests)
    progress = _start_or_resume(settings, output, identity)
    if settings.threads is not None:
        torch.set_num_threads(min(settings.threads, 4 * (os.cpu_count() or 1)))
    keep_freed_memory()
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    tokenizer = DialogueTokenizer.load(settings.data[0])
    torch.manual_seed(settings.seed)
    model = _build_model(settings, tokenizer)
    layout = LAYOUTS[model.config.layout](tokenizer)
    data = PackedData(
        TurnStore(settings.data, "train"),
        layout,
        settings.row_tokens,
        settings.batch_rows,
        settings.seed,
        tokenizer.pad_id,
    )
    if not data.pieces:
        raise SettingsError("Every turn is longer than a row; raise --row_tokens or give other data.")
    run = Run(settings, output, identity, accelerator, tokenizer, model, data, progress)
    return run.go()


class Run:
    """One training run: what `train` has put together, stepped to its end."""

    def __init__(self, settings, output, identity, accelerator, tokenizer, model, data, progress):
        self.settings, self.output, self.identity, self.accelerator = settings, output, identity, accelerator
        self.tokenizer, self.data, self.progress = tokenizer, data, progress
        self.layout = data.layout
        self.shape = {name: getattr(model.config, name, None) for name in SHAPE}  # a foreign one has not all
        self.ancestor = None if settings.init is None else ancestor_of(resolve(settings.init))
        optimizers = build_optimizers(model, settings)
        if progress["step"]:
            load_state(output, model, optimizers)
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        valid = TurnStore(settings.data, "valid")
        most = len(valid) if settings.eval_dialogues is None else min(settings.eval_dialogues, len(valid))
        chosen = np.linspace(0, len(valid) - 1, most).astype(int).tolist() if most else []
        self.valid_dialogues = [valid.turns(index) for index in chosen]
        self.valid_units = [int(valid.units[index]) for index in chosen]
        # t0 comes from all validation turns; without a validation split the training turns have to serve.
        lengths = np.diff(valid.turn_starts if len(valid) else data.store.turn_starts)
        self.floor_start = max(1, int(np.ceil(np.percentile(lengths, REPLY_LENGTH_PERCENTILE))))
        steps = math.ceil(settings.epochs * len(data.batches(0)))
        self.utilisation = data.utilisation()
        self.total_steps = steps if settings.max_steps is None else min(steps, settings.max_steps)

    def go(self) -> dict:
        """Steps to the end; the state of a finished or stopped run can be resumed."""
        log = MetricsLog(self.output, self.progress["step"]) if self.accelerator.is_main_process else None
        bar = tqdm(
            total=self.total_steps,
            initial=self.progress["step"],
            desc="training",
            unit="step",
            file=sys.stderr,
            mininterval=1,
            disable=not self.accelerator.is_main_process,
        )
        with bar:
            for rows in self._remaining_batches():
                entry = self._step(rows)
                step = self.progress["step"]
                last = step == self.total_steps
                if step % self.settings.eval_every == 0 or last:
                    entry |= self._evaluate()
                if log is not None:
                    log.add(**entry)
                    shown = {"loss": f"{entry['loss']:.3f}", "tokens/s": f"{entry['tokens_per_second']:.0f}"}
                    if self.progress["best"] is not None:
                        shown["best nats/unit"] = f"{self.progress['best']:.3f}"
                    bar.set_postfix(shown, refresh=False)
                    bar.update()
                if step % self.settings.save_every == 0 or last:
                    self._save_state()
        if self.accelerator.is_main_process:
            draw_curves(self.output)
        return self._training_record()

    def _remaining_batches(self) -> Iterator[list[list[int]]]:
        done = self.progress["step"]
        start = 0
        for epoch in count():
            batches = self.data.batches(epoch)
            for index, rows in enumerate(batches, start):
                if index >= self.total_steps:
                    return
                if index >= done:
                    yield rows
            start += len(batches)

    def _step(self, rows: list[list[int]]) -> dict:
        """One optimizer step: sum of nats over the whole batch, divided by its targets over all ranks."""
        settings, accelerator = self.settings, self.accelerator
        started = time.perf_counter()
        step = self.progress["step"]
        torch.manual_seed((settings.seed << 32) + step)
        self.model.train()
        rate = settings.learning_rate * schedule(step, self.total_steps, settings)
        for group in [group for optimizer in self.optimizers for group in optimizer.param_groups]:
            group["lr"] = rate
        targets = self.data.targets(rows)
        share = targets / accelerator.num_processes  # DDP averages over the ranks
        loss = 0.0
        micro_batches = split_rows(
            rows, settings.micro_batch_rows, accelerator.process_index, accelerator.num_processes
        )
        for number, micro in enumerate(micro_batches, 1):
            syncs = number == len(micro_batches)
            with nullcontext() if syncs else accelerator.no_sync(self.model):
                batch = {name: tensor.to(accelerator.device) for name, tensor in self.data.tensors(micro).items()}
                micro_loss = self.model(**batch, num_items_in_batch=share).loss
                accelerator.backward(micro_loss)
                loss += micro_loss.item()
        loss = accelerator.reduce(torch.tensor(loss, device=accelerator.device), "mean").item()
        norm = clip_gradients(self.model.parameters(), settings.clip, settings.clip_norm)
        if not math.isfinite(loss) or not math.isfinite(norm):
            raise SettingsError(
                f"Loss {loss} with gradient norm {norm} at step {step + 1}: the run has diverged; start it again in a new"
                f" --output with a lower --learning_rate or --clip norm ({self.output} stays as it was before the step)."
            )
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        tokens = sum(self.data.pieces[index].tokens for row in rows for index in row)
        seconds = time.perf_counter() - started
        self.progress["step"] = step + 1
        self.progress["tokens"] += tokens
        self.progress["seconds"] += seconds
        self.progress["clipped"] += int(settings.clip != "none" and norm > settings.clip_norm)
        return {
            "step": step + 1,
            "loss": loss,
            "learning_rate": rate,
            "gradient_norm": norm,
            "clipped_share": self.progress["clipped"] / (step + 1),
            "tokens": self.progress["tokens"],
            "tokens_per_second": tokens / seconds,
        }

    def _evaluate(self) -> dict:
        """Validation; the best weights so far become the checkpoint. Without a validation split the newest do."""
        entry: dict = {}
        best = True
        if self.valid_dialogues:
            quality = self._quality()
            entry["valid_nats_per_unit"] = quality.nats_per_unit
            best = self.progress["best"] is None or quality.nats_per_unit < self.progress["best"]
            if best:
                self.progress["best"], self.progress["best_step"] = quality.nats_per_unit, self.progress["step"]
        if best and self.accelerator.is_main_process:
            sampler = {"do_sample": True, "temperature": ReplySettings.temperature, "top_p": ReplySettings.top_p}
            floor = {"floor_start_tokens": self.floor_start, "floor_delta_tokens": self.settings.floor_delta}
            model = self.accelerator.unwrap_model(self.model)
            save(self.output, model, self.tokenizer, {**sampler, **floor}, self._training_record())
        self.accelerator.wait_for_everyone()
        return entry

    def _quality(self) -> Quality:
        model = self.accelerator.unwrap_model(self.model)
        return measure_quality(model, self.layout, self.valid_dialogues, self.valid_units)

    def _save_state(self) -> None:
        if self.accelerator.is_main_process:
            model = self.accelerator.unwrap_model(self.model)
            optimizers = [optimizer.optimizer for optimizer in self.optimizers]
            progress = {**self.progress, "identity": self.identity}
            save_state(self.output, self.progress["step"], model, optimizers, progress)
        self.accelerator.wait_for_everyone()

    def _training_record(self) -> dict:
        return {
            **self.identity,
            "shape": self.shape,
            "total_steps": self.total_steps,
            "row_utilisation": round(self.utilisation, 4),
            "left_out_turns": self.data.left_out_turns,
            "versions": {"xianliao": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            **self.progress,
            "initialised_from": self.ancestor,
        }


def schedule(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Share of the peak learning rate at `step` (from 0): linear warm-up, then a cosine."""
    warmup = min(settings.warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = settings.final_learning_rate_share
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))


def split_rows(rows: list[list[int]], micro_batch_rows: int, rank: int, ranks: int) -> list[list[list[int]]]:
    """This rank's micro-batches; every rank gets as many, filled up with empty rows."""
    per_step = micro_batch_rows * ranks
    filled = rows + [[] for _ in range(-len(rows) % ranks)]
    parts = [filled[start : start + per_step] for start in range(0, len(filled), per_step)]
    return [part[rank::ranks] for part in parts]


def _build_model(settings: TrainSettings, tokenizer: DialogueTokenizer) -> XianliaoForCausalLM:
    if settings.init is not None:
        path = resolve(settings.init)
        if DialogueTokenizer.load(path).to_json() != tokenizer.to_json():
            raise SettingsError(
                f"The data and {path} have different tokenizers; prepare the data again with --tokenizer {path}."
            )
        return add_lora(load_model(path, merge=False), settings)
    return build_model(settings.model, tokenizer)


def ancestor_of(checkpoint: Path) -> dict:
    """How the checkpoint that a run starts from was made, as far as it says."""
    path = checkpoint / TRAINING
    return read_json(path) if path.is_file() else {"imported_from": checkpoint.name}


def build_model(shape: ModelSettings, tokenizer: DialogueTokenizer) -> XianliaoForCausalLM:
    """A new model of a shape, for a tokenizer.

    Raises:
        SettingsError: The shape is not one that a model can have.
    """
    sizes = asdict(shape)
    layer_types = repeat_layer_types(sizes.pop("layer_types"), shape.num_hidden_layers)
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    try:
        config = XianliaoConfig(vocab_size=tokenizer.vocab_size, layer_types=layer_types, **ids, **sizes)
    except Exception as error:  # the strict validators raise several kinds
        raise SettingsError(f"--model.…: {last_line(error)}") from None
    return XianliaoForCausalLM(config)


def _identity(settings: TrainSettings, manifests: list[dict]) -> dict:
    """What must not change when a run is resumed."""
    changeable = ("data", "output", "resume", "threads")
    kept = {name: value for name, value in asdict(settings).items() if name not in changeable}
    if settings.init is not None:
        kept["init"] = Path(settings.init).name
        del kept["model"]  # the shape is the ancestor's
    data = [
        {
            "folder": Path(folder).name,
            "tokenizer_hash": manifest["tokenizer_hash"],
            **{name: split["content_hash"] for name, split in manifest["splits"].items()},
            "sources": [source["file"] for source in manifest["sources"]],
        }
        for folder, manifest in zip(settings.data, manifests, strict=True)
    ]
    return {"settings": kept, "data": data}


def _start_or_resume(settings: TrainSettings, output: Path, identity: dict) -> dict:
    if settings.resume:
        progress = load_progress(output)
        before = progress.pop("identity")
        if _digest(before) != _digest(identity):
            changed = [k for k in identity["settings"] if before["settings"].get(k) != identity["settings"][k]]
            what = f"--{', --'.join(changed)} changed" if changed else "the data changed"
            raise ResumeError(f"{output} was started with other settings ({what}); use the same, or another --output.")
        return progress
    output.mkdir(parents=True, exist_ok=True)
    if saved_steps(output):
        raise ResumeError(f"{output} already holds a run; give --resume to continue it, or another --output.")
    if {path.name for path in output.iterdir()} - {METRICS, FOLDER}:  # what a run killed before its first save leaves
        raise ResumeError(f"{output} is not empty; give another --output.")
    return {"step": 0, "tokens": 0, "seconds": 0.0, "clipped": 0, "best": None, "best_step": None}


def _digest(value: dict) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
