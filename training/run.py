"""The training loop: packed batches, accumulation, one clip a step, validation in nats/unit, atomic saves.

A run is a list of stages over one model and its optimizers. Batches are a function of the step, noise is seeded by it,
so a run is the same however often it is stopped and resumed.
"""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from contextlib import contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import torch
import transformers
import yaml
from accelerate import Accelerator
from tqdm import tqdm

from chatbot import __version__
from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import resolve, save
from chatbot.decoding.settings import ReplySettings
from chatbot.model.device import pick_device
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.scoring import score_turns
from chatbot.similarity.token_vectors import VECTORS_FILE
from chatbot.storage import replacing
from chatbot.text.layouts import LAYOUTS
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.turn_store import parse_source
from training.end_head import fit_end_head
from training.optim.clipping import clip_gradients
from training.optim.memory import find_micro_batch_rows, keep_freed_memory
from training.optim.optimizers import build_optimizers
from training.optim.regularizers import Objective
from training.optim.weight_average import WeightAverage
from training.reporting.curves import draw_curves
from training.reporting.logs import METRICS, PROMPTS, SAMPLES, Log, open_tensorboard
from training.reporting.throughput import flops_per_token, matmul_peak, memory_gigabytes
from training.settings import SettingsError, TrainSettings
from training.setup import ancestor_of, load_manifests, load_or_build, needs_fit
from training.stage import Stage, split_rows
from training.state.identity import SETTINGS, identity_of, own_folder, start_or_resume
from training.state.saved_state import (
    load_average,
    load_optimizers,
    load_weights,
    remove_unfinished,
    save_state,
    state_of,
)
from training.state.sharding import is_sharded, whole_weights

SHAPE = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size", "layer_types"),
    *("short_conv", "output_gate", "positions", "linear_rope", "max_position_embeddings", "sliding_window"),
)
FIT_ROWS = 16
"""Rows of the data that a new end head is fitted to before the first step."""

AGAINST_REPETITION = {"no_repeat_ngram": 2, "repeat_cost": 4.0}
"""Stored with a chit-chat model, by the report in chatbot/evaluation/README.md; other projects' models keep theirs."""

RISES = 2
"""Validations in a row above the best after which the log says so."""


def train(settings: TrainSettings) -> dict:
    """Runs (or continues) a training run and returns the content of its training.json, and what stopped it.

    Raises:
        SettingsError, FileError, CheckpointError, ResumeError: What the person has to change, in one sentence.
    """
    settings.check()
    pick_device(settings.device)
    manifests = load_manifests(settings)
    if settings.threads is not None:
        torch.set_num_threads(min(settings.threads, 4 * (os.cpu_count() or 1)))
    keep_freed_memory()
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    output = Path(settings.output)
    with own_folder(output) if accelerator.is_main_process else nullcontext():
        if accelerator.is_main_process:
            remove_unfinished(output)
        accelerator.wait_for_everyone()
        identity = identity_of(settings, manifests)
        progress = start_or_resume(settings, output, identity)
        return Run(settings, output, identity, accelerator, progress).go()


class Run:
    """One training run, stepped to its end."""

    def __init__(self, settings: TrainSettings, output: Path, identity: dict, accelerator: Accelerator, progress: dict):
        self.settings, self.output, self.identity = settings, output, identity
        self.accelerator, self.progress = accelerator, progress
        self.tokenizer = DialogueTokenizer.load(parse_source(settings.of_stage(0).data[0]).folder)
        torch.manual_seed(settings.seed)
        model = load_or_build(settings, self.tokenizer)
        self.layout = LAYOUTS[model.config.layout](self.tokenizer)
        self.shape = {name: getattr(model.config, name) for name in SHAPE if hasattr(model.config, name)}
        self.ancestor = None if settings.init is None else ancestor_of(resolve(settings.init))
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        self.fits_end = needs_fit(settings, model)
        self.flops = flops_per_token(model)
        optimizers = build_optimizers(model, settings)
        if progress["step"]:
            load_weights(output, model)
        if settings.compile:
            model.compile()
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        self.inner = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.sharded = is_sharded(self.inner)
        if self.sharded and (settings.optimizer == "muon" or not isinstance(model, XianliaoForCausalLM)):
            raise SettingsError("FSDP trains our own models with adamw; leave out --optimizer muon, or FSDP.")
        if self.sharded and settings.weight_average:
            raise SettingsError(
                "The weights of a model that FSDP shares out are not averaged; leave out --weight_average."
            )
        if self.sharded and self.fits_end:
            raise SettingsError("A new head is fitted to a whole model; give --termination without FSDP first.")
        if progress["step"]:
            load_optimizers(output, self.inner, [optimizer.optimizer for optimizer in self.optimizers])
        self.average = WeightAverage(self.inner, settings.weight_average) if settings.weight_average else None
        if self.average is not None and progress["step"]:
            load_average(output, self.average)
        self.main = accelerator.is_main_process
        self.asked_to_stop: str | None = None  # by a signal to this process, at any moment
        self.stopped_by: str | None = None  # agreed on by all processes, in a step

    def go(self) -> dict:
        """Steps to the end; the state of a finished or stopped run can be resumed."""
        self._start_logs()
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        self.peak = matmul_peak(self.accelerator.device, dtype)
        with stopping(self):
            for number in range(self.progress["stage"], max(1, len(self.settings.stages))):
                if number > self.progress["stage"]:
                    self.progress |= {"stage": number, "stage_step": 0, "best": None, "best_step": None}
                    self.progress["micro_batch_rows"] = None
                backward = getattr(self.inner.config, "direction", "forward") == "backward"
                self._run_stage(Stage(self.settings, number, self.tokenizer, self.layout, backward))
                if self.stopped_by:
                    break
        if self.main:
            draw_curves(self.output, self.stage.unigram)
        if self.board is not None:
            self.board.close()
        return {**self.training_record(), "stopped_by": self.stopped_by}

    def _start_logs(self) -> None:
        self.log = self.samples = self.board = None
        if not self.main:
            return
        step = self.progress["step"]
        self.log, self.samples = Log(self.output / METRICS, step), Log(self.output / SAMPLES, step)
        if self.settings.tensorboard:
            self.board = open_tensorboard(self.output, step)
        with replacing(self.output / SETTINGS) as temporary:
            again = {name: value for name, value in asdict(self.settings).items() if name != "resume"}
            text = yaml.safe_dump(again, allow_unicode=True, sort_keys=False)
            temporary.write_text(text, encoding="utf-8")

    def _run_stage(self, stage: Stage) -> None:
        self.stage = stage
        self.rises = 0
        objective = Objective(self.model, self.inner, stage.settings.regularization)
        if self.progress["micro_batch_rows"] is None:
            fixed = self.settings.micro_batch_rows
            self.progress["micro_batch_rows"] = find_micro_batch_rows(self, objective) if fixed is None else fixed
        if self.fits_end and not self.progress["step"]:
            self._say(f"{stage.name}: fitting the new {self.inner.config.termination} head to the first rows")
            rows = stage.data.rows(0)[:FIT_ROWS]
            batch = stage.data.tensors(rows)
            fit_end_head(self.inner, [{name: t.to(self.accelerator.device) for name, t in batch.items()}])
        if stage.unigram is not None:
            self._say(f"{stage.name}: a unigram model has {stage.unigram:.3f} nats/unit on the validation split")
        if objective.notice is not None:
            self._say(f"{stage.name}: {objective.notice}")
        bar = tqdm(
            total=stage.steps,
            initial=self.progress["stage_step"],
            desc=stage.name,
            unit="step",
            file=sys.stderr,
            mininterval=1,
            disable=not self.main,
        )
        try:
            with bar:
                for rows in stage.remaining(self.progress["stage_step"]):
                    entry = self._step(rows, objective)
                    last = self.progress["stage_step"] == stage.steps
                    if self.progress["step"] % self.settings.eval_every == 0 or last:
                        averaged = nullcontext() if self.average is None else self.average.in_place()
                        with torch.compiler.set_stance("force_eager"), averaged:  # its shapes never come twice
                            entry |= self._evaluate()
                    self._report(entry, bar)
                    if self.progress["step"] % self.settings.save_every == 0 or last or self.stopped_by:
                        self._save_state()
                    if self.stopped_by:
                        self._say(f"stopped by {self.stopped_by} and saved; --resume goes on")
                        return
        finally:
            objective.close()

    def _step(self, rows: list[list[int]], objective: Objective) -> dict:
        """One optimizer step: sum of nats over the whole batch, divided by its targets over all ranks."""
        accelerator, stage, step = self.accelerator, self.stage, self.progress["step"]
        started = time.perf_counter()
        torch.manual_seed(seed_of(self.settings.seed, step, accelerator.process_index))
        self.model.train()
        rate = stage.rate(self.progress["stage_step"])
        self._set_groups(rate)
        share = stage.data.targets(rows) / accelerator.num_processes  # DDP averages over the ranks
        micro_batches = split_rows(
            rows, self.progress["micro_batch_rows"], accelerator.process_index, accelerator.num_processes
        )
        no_sync = partial(accelerator.no_sync, self.model)
        sums = np.zeros(2)
        for number, micro in enumerate(micro_batches, 1):
            with nullcontext() if number == len(micro_batches) else no_sync():
                batch = {name: tensor.to(accelerator.device) for name, tensor in stage.data.tensors(micro).items()}
                sums += objective.backward(batch, share, accelerator.backward, no_sync)
        sums = torch.tensor([*sums, float(self.asked_to_stop is not None)], device=accelerator.device)
        loss, extra, stop = accelerator.reduce(sums.float(), "mean").tolist()
        if stop:
            self.stopped_by = self.asked_to_stop or "another process"
        norm = clip_gradients(self.model.parameters(), self.settings.clip, self.settings.clip_norm)
        if not math.isfinite(loss + extra) or not math.isfinite(norm):
            self._stop_diverged(loss, norm, rows)
        for optimizer in self.optimizers:
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if self.average is not None:
            self.average.update(step + 1)
        tokens, seconds = stage.data.tokens(rows), time.perf_counter() - started
        clipped = int(self.settings.clip != "none" and norm > self.settings.clip_norm)
        for name, value in (
            ("step", 1),
            ("stage_step", 1),
            ("tokens", tokens),
            ("clipped", clipped),
            ("seconds", seconds),
        ):
            self.progress[name] += value
        entry = {"step": step + 1, "loss": loss, "learning_rate": rate, "gradient_norm": norm}
        if extra:
            entry["regularization"] = extra
        per_second = tokens / seconds
        return entry | {
            "clipped_share": self.progress["clipped"] / (step + 1),
            "tokens": self.progress["tokens"],
            "tokens_per_second": per_second,
            "model_flops_utilisation": per_second * self.flops / (self.peak * accelerator.num_processes),
            "memory_gigabytes": memory_gigabytes(accelerator.device),
        }

    def _set_groups(self, rate: float) -> None:
        for group in [group for optimizer in self.optimizers for group in optimizer.param_groups]:
            group["lr"] = rate
            if group["params"] and group["params"][0].ndim >= 2:
                group["weight_decay"] = self.stage.settings.weight_decay

    def _stop_diverged(self, loss: float, norm: float, rows: list[list[int]]) -> None:
        """Keeps the weights as they were before the step and says which batch it was.

        Raises:
            SettingsError: Always.
        """
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)
        if self.progress["step"] % self.settings.save_every:  # otherwise it is saved, if there is anything to save
            self._save_state()
        raise SettingsError(
            f"Loss {loss} with gradient norm {norm} at step {self.progress['step'] + 1}: the run has diverged; start it"
            f" again in a new --output with a lower --learning_rate or --clip norm ({self.output} stays as it was before"
            f" the step). The batch was: {self.stage.data.describe(rows)}."
        )

    def _report(self, entry: dict, bar: tqdm) -> None:
        if self.log is None:
            return
        self.log.add(**entry)
        if self.board is not None:
            for name, value in entry.items():
                self.board.add_scalar(name, value, entry["step"])
        shown = {"loss": f"{entry['loss']:.3f}", "tokens/s": f"{entry['tokens_per_second']:.0f}"}
        shown |= {"MFU": f"{entry['model_flops_utilisation']:.0%}", "GB": f"{entry['memory_gigabytes']:.1f}"}
        if self.progress["best"] is not None:
            shown["best nats/unit"] = f"{self.progress['best']:.3f}"
        bar.set_postfix(shown, refresh=False)
        bar.update()

    def _evaluate(self) -> dict:
        """Validation; the best weights so far become the checkpoint. Without a validation split the newest do."""
        entry: dict = {}
        best, progress = True, self.progress
        if self.stage.valid_dialogues:
            quality = entry["valid_nats_per_unit"] = self._quality()
            if not math.isfinite(quality):
                raise SettingsError(
                    f"Validation gives {quality} at step {progress['step']}: the run has diverged; start it again in a"
                    f" new --output with a lower --learning_rate ({self.output} keeps the checkpoint before)."
                )
            best = progress["best"] is None or quality < progress["best"]
            self.rises = 0 if best else self.rises + 1
            if best:
                progress["best"], progress["best_step"] = quality, progress["step"]
            elif self.rises == RISES:
                self._say(
                    f"validation rises: {quality:.4f} nats/unit after {progress['best']:.4f} at step"
                    f" {progress['best_step']}; the checkpoint stays at the best"
                )
        sampler = {"do_sample": True, "temperature": ReplySettings.temperature, "top_p": ReplySettings.top_p}
        if isinstance(self.inner, XianliaoForCausalLM):
            sampler |= AGAINST_REPETITION
        floor = {
            "floor_start_tokens": self.stage.floor_start,
            "floor_delta_tokens": self.settings.floor_delta,
        }
        if best:
            weights = whole_weights(self.inner) if self.sharded else None
            if self.main:
                record = self.training_record()
                save(self.output, self.inner, self.tokenizer, {**sampler, **floor}, record, weights=weights)
                self._keep_vectors()
        if self.main or self.sharded:  # the processes of a sharded model run it together
            self._sample_replies(floor)
        self.accelerator.wait_for_everyone()
        return entry

    def _keep_vectors(self) -> None:
        """Token vectors of the checkpoint that the run starts from go on with its tokenizer."""
        own = self.output / VECTORS_FILE
        if self.settings.init is not None and not own.exists():
            inherited = resolve(self.settings.init) / VECTORS_FILE
            if inherited.is_file():
                with replacing(own) as temporary:
                    temporary.write_bytes(inherited.read_bytes())

    def _quality(self) -> float:
        """nats/unit of the validation dialogues, which the processes share; those of a sharded model run all together."""
        stage, rank, ranks = self.stage, self.accelerator.process_index, self.accelerator.num_processes
        if self.sharded:
            rank, ranks = 0, 1
        scores = score_turns(self.inner, self.layout, stage.valid_dialogues[rank::ranks])
        counted = zip(scores, stage.valid_turns[rank::ranks], strict=True)
        nats = sum(sum(turns[part]) for turns, part in counted)
        if ranks > 1:
            total = torch.tensor(nats, device=self.accelerator.device, dtype=torch.float64)
            nats = self.accelerator.reduce(total, "sum").item()
        return nats / sum(stage.valid_units)

    def _sample_replies(self, floor: dict) -> None:
        self.inner.eval()
        bot = Chatbot(self.inner, self.tokenizer, ReplySettings(**floor), self.output.name)
        for prompt in PROMPTS:
            reply = bot.reply(prompt, seed=0)
            if not self.main:
                continue
            self.samples.add(step=self.progress["step"], prompt=prompt, reply=reply)
            if self.board is not None:
                self.board.add_text(prompt[-1], reply, self.progress["step"])
            if prompt is PROMPTS[0]:
                self._say(f"step {self.progress['step']}: {prompt[-1]} -> {reply}")

    def _save_state(self) -> None:
        if self.main or self.sharded:
            weights, optimizers = state_of(self.inner, [optimizer.optimizer for optimizer in self.optimizers])
        if self.main:
            progress = {**self.progress, "identity": self.identity}
            average = None if self.average is None else self.average.averages
            save_state(self.output, self.progress["step"], weights, optimizers, progress, average)
        self.accelerator.wait_for_everyone()

    def _say(self, text: str) -> None:
        if self.main:
            tqdm.write(text, file=sys.stderr)

    def training_record(self) -> dict:
        """Content of training.json."""
        return {
            **self.identity,
            "shape": self.shape,
            "stage_steps": self.stage.steps,
            "row_utilisation": round(self.stage.utilisation, 4),
            "left_out_turns": self.stage.data.left_out_turns,
            "unigram_nats_per_unit": self.stage.unigram,
            "processes": self.accelerator.num_processes,
            "versions": {"xianliao": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            **self.progress,
            "initialised_from": self.ancestor,
        }


def seed_of(seed: int, step: int, rank: int) -> int:
    """Seed of the noise and dropout of a step in a process."""
    return int(np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0] >> 1)


@contextmanager
def stopping(run: Run):
    """Ctrl-C and SIGTERM end the run after the step it is in, saved; a second one ends it at once."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def stop(number, frame):
        run.asked_to_stop = signal.Signals(number).name
        signal.signal(number, before[number])

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
