"""The model of a run with its optimizers and weight average, prepared for the processes that train it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from chatbot.model.network import XianliaoForCausalLM
from chatbot.text.layouts import LAYOUTS, Layout
from chatbot.text.tokenizer import DialogueTokenizer
from training.optim.memory import check_passes
from training.optim.optimizers import build_optimizers
from training.optim.weight_average import WeightAverage
from training.reporting.throughput import flops_per_token
from training.settings import SettingsError, TrainSettings
from training.setup import TrainableModel, has_new_end_head, load_or_build
from training.state.saved_state import load_average, load_optimizers, load_weights, save_state, state_of
from training.state.sharding import is_sharded

SHAPE = (
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "head_dim",
    "intermediate_size",
    "layer_types",
    "short_conv",
    "output_gate",
    "positions",
    "linear_rope",
    "max_position_embeddings",
    "sliding_window",
)
"""Settings of the model that are recorded in training.json."""


class TrainedModel:
    """A model in training.

    Args:
        settings: Settings of the run.
        tokenizer: Tokenizer of the data.
        accelerator: Accelerator of the run.
        output: Folder of the run.
        resumed: Whether to load the newest saved state.

    Attributes:
        model: Model as prepared for training, which may be a wrapper for several processes.
        inner: Unwrapped model.
        optimizers: Prepared optimizers.
        average: Moving average of the weights, or None.
        layout: Layout of the model's dialogues.
        shape: Shape of the model, by the name of the setting.
        flops_per_token: Floating-point operations of a training step per token.
        has_new_end_head: Whether the model has an end-of-turn head that its ancestor did not have.
        is_sharded: Whether FSDP shards the parameters over the processes.

    Raises:
        SettingsError: The settings do not fit the model.
        CheckpointError: The checkpoint of --init cannot be read.
        ResumeError: The saved state cannot be read.
    """

    def __init__(
        self,
        settings: TrainSettings,
        tokenizer: DialogueTokenizer,
        accelerator: Accelerator,
        output: Path,
        resumed: bool,
    ):
        self.accelerator = accelerator
        torch.manual_seed(settings.seed)
        model = load_or_build(settings, tokenizer, accelerator.device)
        check_passes(model.config, settings, accelerator.device)
        self.layout: Layout = LAYOUTS[model.config.layout](tokenizer)
        self.shape = {name: getattr(model.config, name) for name in SHAPE if hasattr(model.config, name)}
        self.has_new_end_head = has_new_end_head(settings, model)
        self.flops_per_token = flops_per_token(model)
        if settings.gradient_checkpointing:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        optimizers = build_optimizers(model, settings)
        if resumed:
            load_weights(output, model)
        if settings.compile:
            model.compile()
        self.model: torch.nn.Module
        self.optimizers: list[torch.optim.Optimizer]
        self.model, *self.optimizers = accelerator.prepare(model, *optimizers)
        self.inner: TrainableModel = accelerator.unwrap_model(self.model, keep_torch_compile=False)
        self.is_sharded = is_sharded(self.inner)
        self._check_sharding(settings)
        if resumed:
            load_optimizers(output, self.inner, self._plain_optimizers())
        self.average = WeightAverage(self.inner, settings.weight_average) if settings.weight_average else None
        if self.average is not None and resumed:
            load_average(output, self.average)

    def _check_sharding(self, settings: TrainSettings) -> None:
        if not self.is_sharded:
            return
        if settings.optimizer == "muon" or not isinstance(self.inner, XianliaoForCausalLM):
            raise SettingsError(
                "FSDP supports only models of this project with --optimizer adamw. Change the optimizer, or train"
                " without FSDP."
            )
        if settings.weight_average:
            raise SettingsError("FSDP does not support --weight-average. Leave it out, or train without FSDP.")
        if self.has_new_end_head:
            raise SettingsError(
                "FSDP cannot fit a new end-of-turn head. Train one step with --termination without FSDP first."
            )

    def _plain_optimizers(self) -> list[torch.optim.Optimizer]:
        """Return the optimizers without accelerate's wrappers."""
        return [getattr(optimizer, "optimizer", optimizer) for optimizer in self.optimizers]

    @property
    def is_main(self) -> bool:
        """Return whether this is the first process."""
        return self.accelerator.is_main_process

    def zero_gradients(self) -> None:
        """Drop all gradients."""
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def save_state(self, output: Path, step: int, progress: dict[str, Any]) -> None:
        """Save the state to resume from; all processes must call this.

        Raises:
            ResumeError: The files cannot be written.
        """
        if self.is_main or self.is_sharded:
            weights, optimizers = state_of(self.inner, self._plain_optimizers())
            if self.is_main:
                average = None if self.average is None else self.average.averages
                save_state(output, step, weights, optimizers, progress, average)
        self.accelerator.wait_for_everyone()
