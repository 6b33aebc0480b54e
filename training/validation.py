"""Validation in nats/unit, the best checkpoint of a stage, and sample replies."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import GENERATION, resolve, save
from chatbot.decoding.settings import ReplySettings, ReplySettingsError, settings_from
from chatbot.model.network import XianliaoForCausalLM
from chatbot.model.scoring import score_turns
from chatbot.similarity.token_vectors import VECTORS_FILE
from chatbot.storage import read_json, replacing
from chatbot.text.tokenizer import DialogueTokenizer
from training.latent.validation import check_not_collapsed, entries_of, measure_latent
from training.reporting.logs import RunLogs
from training.reporting.samples import (
    MAX_MESSAGES,
    PROMPTS,
    SampleMessage,
    describe_change,
    last_replies,
    prompt_text,
    sample_messages,
)
from training.settings import SettingsError
from training.setup import TrainableModel
from training.stage import Stage
from training.state.run_folder import SAMPLES, read_log
from training.state.saved_state import Progress
from training.state.sharding import whole_weights
from training.trained_model import TrainedModel

AGAINST_REPETITION = {"no_repeat_ngram": 2, "repeat_cost": 4.0}
"""Decoder settings stored with models of this project; chatbot/evaluation/README.md has the report behind them."""

MAX_SILENT_RISES = 2
"""Number of consecutive validations above the best after which the log reports a rise."""


@dataclass
class Validation:
    """Validation of a stage.

    Attributes:
        trained: Model in training.
        stage: Stage with its validation dialogues.
        tokenizer: Tokenizer of the data, saved with the checkpoint.
        decoder: Decoder settings to store with the checkpoint, without the EOS floor; see `decoder_settings`.
        output: Folder of the run.
        logs: Logs of the run.
        ancestor_floor: EOS floor of the checkpoint that the run starts from, in tokens; 0 without one.
        messages: Messages that the bot answers at every validation.
        replies: Its last reply to each of them.
    """

    trained: TrainedModel
    stage: Stage
    tokenizer: DialogueTokenizer
    decoder: dict[str, Any]
    output: Path
    logs: RunLogs
    ancestor_floor: int = 0

    def __post_init__(self) -> None:
        dialogues = ([self.tokenizer.decode(ids) for ids in turns[:2]] for turns in self.stage.valid_dialogues)
        self.messages = sample_messages(dialogues, MAX_MESSAGES) or list(map(SampleMessage, PROMPTS))
        self.replies = last_replies(read_log(self.output / SAMPLES))

    def run(self, progress: Progress, training_record: Callable[[], dict[str, Any]]) -> dict[str, float]:
        """Validate, save the checkpoint if it is the best of the stage, and write sample replies.

        Without validation dialogues the checkpoint is always saved. All processes call this together.

        Args:
            progress: Progress of the run; `best`, `best_step` and `validations_since_best` are updated.
            training_record: Returns the content of training.json.

        Returns:
            Entries of the metrics.

        Raises:
            SettingsError: The result is not finite.
        """
        entry: dict[str, float] = {}
        is_best = True
        if self.stage.valid_dialogues:
            nats = entry["valid_nats_per_unit"] = nats_per_unit(self.trained, self.stage)
            if self.stage.settings.latent != "keep":
                nats = self._measure_latent(progress, entry)
            is_best = self._compare(nats, progress)
            step, nats = progress["step"], entry["valid_nats_per_unit"]
            if progress["before"] is None:
                self.logs.message(f"step {step}: {nats:.3f} nats/unit")
            else:
                self.logs.message(f"step {step}: {nats:.3f} nats/unit ({progress['before']:.3f} before the training)")
        if is_best:
            inner = self.trained.inner
            weights = whole_weights(inner) if self.trained.is_sharded else None
            if self.trained.is_main:
                generation = {**self.decoder, **self.floor}
                save(self.output, inner, self.tokenizer, generation, training_record(), weights=weights)
                copy_vectors(self.stage.settings.init, self.output)
        if self.trained.is_main or self.trained.is_sharded:  # the processes of a sharded model run it together
            self.sample_replies(progress["step"])
        self.trained.accelerator.wait_for_everyone()
        return entry

    @property
    def floor(self) -> dict[str, int]:
        """Settings of the EOS floor to store: from the turn lengths of the data, but never below the floor of the ancestor.

        Short dialogues must not cut the replies of a bot that has learnt longer ones.
        """
        start = max(self.stage.floor_start, self.ancestor_floor)
        return {"floor_start_tokens": start, "floor_delta_tokens": self.stage.settings.floor_delta}

    def _measure_latent(self, progress: Progress, entry: dict[str, float]) -> float:
        """Add the measures of the latent to the entry and return the bound, by which the best checkpoint is chosen."""
        measures = measure_latent(self.trained, self.stage, self.tokenizer)
        if measures is None:
            return entry["valid_nats_per_unit"]
        entry |= entries_of(measures)
        self.logs.message(
            f"latent: bound {measures.bound:.3f}, base {measures.base:.3f}, shuffled z {measures.shuffle_cost:+.3f}"
            f" nats/unit, {measures.active_units} active, information {measures.mutual_information:.2f} nats"
        )
        check_not_collapsed(measures, self.stage, progress["stage_step"])
        return measures.bound

    def _compare(self, nats: float, progress: Progress) -> bool:
        """Return whether a validation result is the best of the stage so far; if so, record it."""
        if not math.isfinite(nats):
            raise SettingsError(
                f"Validation gives {nats} nats/unit at step {progress['step']}: the run has diverged. Start it again in"
                f" a new --output with a lower --learning-rate; {self.output} keeps the checkpoint before."
            )
        if progress["best"] is None or nats < progress["best"]:
            progress["best"], progress["best_step"] = nats, progress["step"]
            progress["validations_since_best"] = 0
            return True
        progress["validations_since_best"] += 1
        if progress["validations_since_best"] == MAX_SILENT_RISES:
            self.logs.message(
                f"validation rises: {nats:.4f} nats/unit after {progress['best']:.4f} at step {progress['best_step']};"
                " the checkpoint stays at the best"
            )
        return False

    def sample_replies(self, step: int) -> None:
        """Answer the messages with the decoder of the checkpoint, without a choice among candidates."""
        self.trained.inner.eval()
        settings = settings_from({**self.decoder, **self.floor, "candidates": 1})
        bot = Chatbot(self.trained.inner, self.tokenizer, settings, self.output.name)
        replies = {}
        for message in self.messages:
            reply = replies[prompt_text(message.prompt)] = bot.reply(message.prompt, seed=0)
            self.logs.add_sample(step, message, reply)
        self.logs.message(describe_change(step, self.replies, replies))
        self.replies = replies


def nats_per_unit(trained: TrainedModel, stage: Stage) -> float:
    """Return the nats/unit of the validation dialogues.

    Each process scores a share of the dialogues; the processes of a sharded model score all of them together.
    """
    accelerator = trained.accelerator
    rank, ranks = accelerator.process_index, accelerator.num_processes
    if trained.is_sharded:
        rank, ranks = 0, 1
    scores = score_turns(trained.inner, trained.layout, stage.valid_dialogues[rank::ranks])
    counted = zip(scores, stage.valid_turns[rank::ranks], strict=True)
    nats = sum(sum(turns[part]) for turns, part in counted)
    if ranks > 1:
        total = torch.tensor(nats, device=accelerator.device, dtype=torch.float64)
        nats = accelerator.reduce(total, "sum").item()
    return nats / sum(stage.valid_units)


def decoder_settings(model: TrainableModel, init: str | None) -> dict[str, Any]:
    """Return the decoder settings to store with a checkpoint, without the EOS floor.

    A model keeps all decoder settings of the checkpoint that it starts from. For settings that the checkpoint does not
    have, models of this project get this project's values.

    Args:
        model: Unwrapped model.
        init: Checkpoint that the run starts from, or None.

    Raises:
        SettingsError: The checkpoint's settings are invalid.
    """
    sampling = {"do_sample": True, "temperature": ReplySettings.temperature, "top_p": ReplySettings.top_p}
    names = {field.name for field in fields(ReplySettings)} | {"do_sample"}
    names -= {"floor_start_tokens", "floor_delta_tokens"}
    if isinstance(model, XianliaoForCausalLM):
        sampling |= AGAINST_REPETITION
    path = None if init is None else resolve(init) / GENERATION
    if path is None or not path.is_file():
        return sampling
    inherited = {name: value for name, value in read_json(path).items() if name in names and value not in (None, [])}
    try:
        settings_from(inherited)
    except ReplySettingsError as error:
        raise SettingsError(f"{path} has decoder settings that cannot be used. {error}") from None
    return sampling | inherited


def copy_vectors(init: str | None, output: Path) -> None:
    """Copy the token vectors of the checkpoint that a run starts from, unless the run has some already."""
    target = output / VECTORS_FILE
    if init is None or target.exists():
        return
    source = resolve(init) / VECTORS_FILE
    if source.is_file():
        with replacing(target) as temporary:
            temporary.write_bytes(source.read_bytes())


def ancestor_floor(init: str | None) -> int:
    """Return t0 of the EOS floor of the checkpoint that a run starts from, in tokens; 0 if it has none."""
    path = None if init is None else resolve(init) / GENERATION
    start = read_json(path).get("floor_start_tokens") if path is not None and path.is_file() else None
    return start if isinstance(start, int) else 0
