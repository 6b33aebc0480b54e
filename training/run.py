"""The training run: consecutive stages over one model, with validation, logs, saved states and signals.

Batches are a function of the step number and all noise is seeded by it, so a run gives the same weights however often
it is stopped and resumed.
"""

from __future__ import annotations

import os
import sys
import time
from contextlib import nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any, NoReturn

import torch
import transformers
import yaml
from accelerate import Accelerator
from accelerate.utils import broadcast
from tqdm import tqdm

from chatbot import __version__
from chatbot.checkpoint.folder import resolve
from chatbot.model.device import pick_device
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import replacing
from chatbot.text.tokenizer import DialogueTokenizer
from training.data.turn_store import parse_source
from training.end_head import fit_end_head
from training.inputs import load_manifests
from training.latent.objective import LatentObjective
from training.optim.memory import find_micro_batch_rows, keep_freed_memory
from training.optim.regularizers import Objective
from training.reporting.curves import draw_curves
from training.reporting.logs import RunLogs
from training.reporting.throughput import matmul_peak, memory_gigabytes, utilisation
from training.settings import SettingsError, TrainSettings
from training.setup import ancestor_of
from training.stage import Stage
from training.state.identity import identity_of, start_or_resume
from training.state.run_folder import SETTINGS, own_folder
from training.state.saved_state import Progress, remove_unfinished
from training.state.signals import stopping
from training.step import DivergedError, StepResult, take_step
from training.trained_model import TrainedModel
from training.validation import Validation, ancestor_floor, decoder_settings, nats_per_unit

FIT_ROWS = 16
"""Number of rows of the data to which a new end-of-turn head is fitted before the first step."""


def train(settings: TrainSettings, run: type[Run] | None = None, is_locked: bool = False) -> dict[str, Any]:
    """Start or continue a training run of the class `run` (default `Run`); `is_locked`: the caller has locked the folder.

    Returns:
        Content of training.json, and `stopped_by`: the signal that stopped the run, or None.

    Raises:
        SettingsError, FileError, CheckpointError, ResumeError: An error that the user can correct.
    """
    settings.check()
    pick_device(settings.device)
    manifests = load_manifests(settings)
    if settings.threads is not None:
        torch.set_num_threads(min(settings.threads, 4 * (os.cpu_count() or 1)))
    keep_freed_memory()
    accelerator = Accelerator(cpu=settings.device == "cpu", mixed_precision=settings.precision)
    output = Path(settings.output)
    with own_folder(output) if accelerator.is_main_process and not is_locked else nullcontext():
        if accelerator.is_main_process:
            remove_unfinished(output)
        accelerator.wait_for_everyone()
        identity = identity_of(settings, manifests)
        progress = start_or_resume(settings, output, identity)
        return (run or Run)(settings, output, identity, accelerator, progress).run()


class Run:
    """A training run.

    Args:
        settings: Settings, checked.
        output: Folder of the run, locked.
        identity: Settings and data hashes that must be the same when the run is resumed.
        accelerator: Accelerator of the processes.
        progress: Progress that the run starts from.

    Raises:
        SettingsError, CheckpointError, ResumeError: An error that the user can correct.
    """

    def __init__(
        self,
        settings: TrainSettings,
        output: Path,
        identity: dict[str, Any],
        accelerator: Accelerator,
        progress: Progress,
    ):
        self.settings, self.output, self.identity, self.progress = settings, output, identity, progress
        self.accelerator, self.is_main = accelerator, accelerator.is_main_process
        self.tokenizer = DialogueTokenizer.load(parse_source(settings.of_stage(0).data[0]).folder)
        self.trained = TrainedModel(settings, self.tokenizer, accelerator, output, resumed=progress["step"] > 0)
        self.decoder = decoder_settings(self.trained.inner, settings.init)
        self.ancestor = None if settings.init is None else ancestor_of(resolve(settings.init))
        self.stop_signal: str | None = None  # received by this process, at any moment
        self.stopped_by: str | None = None  # agreed on by all processes, in a step
        last_step = progress["step"] or -1  # a run that starts again writes its entries of step 0 again
        self.logs = RunLogs(output, last_step, settings.tensorboard, self.is_main)
        self.peak = 0.0
        self.stage: Stage

    def run(self) -> dict[str, Any]:
        """Run all remaining stages and return the result of `train`."""
        self._write_settings()
        dtype = torch.bfloat16 if self.settings.precision == "bf16" else torch.float32
        self.peak = matmul_peak(self.accelerator.device, dtype)
        backward = self.trained.inner.config.direction == "backward"
        with stopping(self):
            for number in range(self.progress["stage"], max(1, len(self.settings.stages))):
                if number > self.progress["stage"]:
                    self._begin_stage(number)
                self._run_stage(Stage(self.settings, number, self.tokenizer, self.trained.layout, backward))
                if self.stopped_by:
                    break
        if self.is_main:
            draw_curves(self.output, self.stage.unigram, self.progress["before"], self.stage.tokens_per_unit)
        self.logs.close()
        return {**self.training_record(), "stopped_by": self.stopped_by}

    def _begin_stage(self, number: int) -> None:
        self.progress["stage"], self.progress["stage_step"] = number, 0
        self.progress["best"] = self.progress["best_step"] = self.progress["micro_batch_rows"] = None
        self.progress["before"], self.progress["validations_since_best"] = None, 0

    def _write_settings(self) -> None:
        if not self.is_main:
            return
        values = {name: value for name, value in asdict(self.settings).items() if name != "resume"}
        with replacing(self.output / SETTINGS) as temporary:
            temporary.write_text(yaml.safe_dump(values, allow_unicode=True, sort_keys=False), encoding="utf-8")

    def _run_stage(self, stage: Stage) -> None:
        self.stage = stage
        objective = self._objective(stage)
        floor = ancestor_floor(self.settings.init)
        validation = Validation(self.trained, stage, self.tokenizer, self.decoder, self.output, self.logs, floor)
        try:
            self._prepare_stage(stage, objective)
            if self.settings.init is not None and not self.progress["stage_step"]:
                self._measure_before(validation)
            with self._progress_bar(stage) as bar:
                for rows in stage.remaining(self.progress["stage_step"]):
                    if self._is_patience_exhausted():
                        self._report_early_stop()
                        break
                    entry = self._step(rows, objective)
                    is_last = self.progress["stage_step"] == stage.steps
                    if self.progress["step"] % self.settings.eval_every == 0 or is_last:
                        entry |= self._validate(validation)
                    self._report(entry, bar)
                    is_last |= self._is_patience_exhausted()
                    if self.progress["step"] % self.settings.save_every == 0 or is_last or self.stopped_by:
                        self._save_state()
                    if self.stopped_by:
                        self.logs.message(f"stopped by {self.stopped_by} and saved; continue with --resume")
                        return
        finally:
            objective.close()

    def _is_patience_exhausted(self) -> bool:
        return 0 < self.settings.early_stopping_patience <= self.progress["validations_since_best"]

    def _report_early_stop(self) -> None:
        self.logs.message(
            f"{self.stage.name}: stopped early after {self.progress['stage_step']} of {self.stage.steps} steps, because"
            f" {self.progress['validations_since_best']} consecutive validations brought no improvement"
        )

    def _objective(self, stage: Stage) -> Objective:
        if stage.settings.latent == "keep":
            return Objective(self.trained.model, self.trained.inner, stage.settings.regularization)
        if self.accelerator.num_processes > 1:
            raise SettingsError("--latent trains in one process; start xianliao-train without torchrun.")
        assert isinstance(self.trained.inner, XianliaoForCausalLM)
        return LatentObjective(self.trained.inner, stage.settings, stage.steps, self.accelerator)

    def _prepare_stage(self, stage: Stage, objective: Objective) -> None:
        """Choose the micro-batch, fit a new end-of-turn head and print the notices of the stage."""
        if self.progress["micro_batch_rows"] is None:
            rows = self.settings.micro_batch_rows
            if rows is None:
                rows = find_micro_batch_rows(
                    self.trained.model, objective, stage.data, stage.settings.batch_rows, self.accelerator
                )
            self.progress["micro_batch_rows"] = rows
        if self.trained.has_new_end_head and not self.progress["step"]:
            self._fit_end_head(stage)
        if stage.unigram is not None:
            self.logs.message(
                f"{stage.name}: a unigram model has {stage.unigram:.3f} nats/unit on the validation split"
            )
        if objective.notice is not None:
            self.logs.message(f"{stage.name}: {objective.notice}")

    def _measure_before(self, validation: Validation) -> None:
        """Validate and write sample replies before the first step of a stage, to show what the training changes."""
        if self.stage.valid_dialogues:
            self.progress["before"] = nats_per_unit(self.trained, self.stage)
            self.logs.message(f"{self.stage.name}: {self.progress['before']:.3f} nats/unit before the training")
        if not self.progress["step"]:
            validation.sample_replies(0)

    def _fit_end_head(self, stage: Stage) -> None:
        """Fit the new head in every process and use the first process's result in all of them.

        Sums on GPUs may differ between processes; DDP would never reconcile different heads.
        """
        model = self.trained.inner
        assert isinstance(model, XianliaoForCausalLM)
        self.logs.message(f"{stage.name}: fitting the new {model.config.termination} head to the first rows")
        batch = stage.data.tensors(stage.data.rows(0)[:FIT_ROWS])
        fit_end_head(model, [{name: tensor.to(self.accelerator.device) for name, tensor in batch.items()}])
        with torch.no_grad():
            for parameter in model.get_submodule("end_head").parameters():
                parameter.copy_(broadcast(parameter.detach().clone()))

    def _progress_bar(self, stage: Stage) -> tqdm:
        return tqdm(
            total=stage.steps,
            initial=self.progress["stage_step"],
            desc=stage.name,
            unit="step",
            file=sys.stderr,
            mininterval=1,
            disable=not self.is_main,
        )

    def _step(self, rows: list[list[int]], objective: Objective) -> dict[str, float]:
        """Take an optimizer step, update the progress and return the metrics of the step."""
        started = time.perf_counter()
        rate = self.stage.rate(self.progress["stage_step"])
        stop = self.stop_signal is not None
        if isinstance(objective, LatentObjective):
            objective.begin(self.progress["stage_step"], self.trained.optimizers)
        try:
            result = take_step(self.trained, self.stage, objective, rows, self.progress, self.settings, stop)
        except DivergedError as error:
            self._stop_diverged(error, rows)
        if result.stop_requested:
            self.stopped_by = self.stop_signal or "another process"
        tokens, seconds = self.stage.data.tokens(rows), time.perf_counter() - started
        self.progress["step"] += 1
        self.progress["stage_step"] += 1
        self.progress["tokens"] += tokens
        self.progress["seconds"] += seconds
        self.progress["clipped"] += int(result.clipped)
        latent_metrics = objective.metrics() if isinstance(objective, LatentObjective) else {}
        return self._metrics(result, rate, tokens / seconds) | latent_metrics

    def _metrics(self, result: StepResult, rate: float, tokens_per_second: float) -> dict[str, float]:
        """Return the entry of metrics.jsonl for a step; utilisation is left out where it is unknown."""
        entry = {
            "step": self.progress["step"],
            "loss": result.loss,
            "learning_rate": rate,
            "gradient_norm": result.gradient_norm,
        }
        if result.regularization:
            entry["regularization"] = result.regularization
        entry |= {
            "clipped_share": self.progress["clipped"] / self.progress["step"],
            "tokens": self.progress["tokens"],
            "tokens_per_second": tokens_per_second,
        }
        flops_per_second = tokens_per_second * self.trained.flops_per_token / self.accelerator.num_processes
        share = utilisation(flops_per_second, self.peak)
        if share is not None:
            entry["model_flops_utilisation"] = share
        entry["memory_gigabytes"] = memory_gigabytes(self.accelerator.device)
        return entry

    def _stop_diverged(self, error: DivergedError, rows: list[list[int]]) -> NoReturn:
        """Save the state before the step and name the dialogues of the batch.

        Raises:
            SettingsError: Always.
        """
        if self.progress["step"] % self.settings.save_every:  # otherwise this state is saved already, or the run is new
            self._save_state()
        raise SettingsError(
            f"Loss {error.loss} with gradient norm {error.gradient_norm} at step {self.progress['step'] + 1}: the run"
            f" has diverged. {self.output} keeps the state before the step, but --resume would repeat the step."
            " Start again in a new --output with a lower --learning-rate or --clip norm, or with other data. The batch was:"
            f" {self.stage.data.describe(rows)}."
        ) from None

    def _validate(self, validation: Validation) -> dict[str, float]:
        averaged = nullcontext() if self.trained.average is None else self.trained.average.in_place()
        with torch.compiler.set_stance("force_eager"), averaged:  # validation batches rarely repeat a shape
            return validation.run(self.progress, self.training_record)

    def _report(self, entry: dict[str, float], bar: tqdm) -> None:
        """Write the metrics of a step to the logs, and loss and speed to the progress bar."""
        self.logs.add_metrics(entry)
        shown = {"loss": f"{entry['loss']:.3f}", "tokens/s": f"{entry['tokens_per_second']:.0f}"}
        bar.set_postfix(shown, refresh=False)
        bar.update()

    def _save_state(self) -> None:
        progress = {**self.progress, "identity": self.identity}
        self.trained.save_state(self.output, self.progress["step"], progress)

    def training_record(self) -> dict[str, Any]:
        """Return the content of training.json."""
        return {
            **self.identity,
            "shape": self.trained.shape,
            "stage_steps": self.stage.steps,
            "valid_dialogues": len(self.stage.valid_dialogues),
            "row_utilisation": round(self.stage.utilisation, 4),
            "left_out_turns": self.stage.data.left_out_turns,
            "unigram_nats_per_unit": self.stage.unigram,
            "processes": self.accelerator.num_processes,
            "versions": {"xianliao": __version__, "torch": torch.__version__, "transformers": transformers.__version__},
            **self.progress,
            "initialised_from": self.ancestor,
        }
