"""Settings of a training run: defaults < --config file.yaml < flags, wherever --config stands."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from chatbot.errors import XianliaoError
from chatbot.layer_types import DEFAULT_LAYER_TYPES, LAYER_TYPES


class SettingsError(XianliaoError):
    """Settings that cannot work together; the message names the flags."""


@dataclass(frozen=True)
class ModelSettings:
    """Shape of a new model; ignored with --init.

    Attributes:
        hidden_size: Width of the residual stream.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads of every mixer.
        head_dim: Width of a head.
        intermediate_size: Width of the feed-forward layers.
        layer_types: Mixers of the blocks (`chatbot.configuration.LAYER_TYPES`), repeated until every block has one:
            the default alternates linear_elu1 and sliding_softmax.
        short_conv: Tokens that a short convolution before each mixer sees; 0 leaves it out.
        output_gate: Whether the mixers' output is gated by their input.
        positions: rope, learned or none; only mixers without decay need them.
        linear_rope: Whether rope also turns linear attention with a feature map.
        max_position_embeddings: Longest dialogue in tokens with learned positions or a Synthesizer.
        sliding_window: Tokens that sliding_softmax sees.
    """

    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    head_dim: int = 64
    intermediate_size: int = 1536
    layer_types: list[str] = field(default_factory=lambda: list(DEFAULT_LAYER_TYPES))
    short_conv: int = 4
    output_gate: bool = True
    positions: Literal["rope", "learned", "none"] = "rope"
    linear_rope: bool = False
    max_position_embeddings: int = 1024
    sliding_window: int = 128


@dataclass(frozen=True)
class TrainSettings:
    """A training run.

    Attributes:
        data: Prepared sets, all made with the same tokenizer.
        output: Folder of the checkpoint, metrics.jsonl, curves.png and the state to resume from.
        init: Checkpoint folder to start from instead of new weights.
        resume: Continue the run that was stopped in --output.
        model: Shape of a new model.
        epochs: Passes over the data.
        max_steps: Stop after so many optimizer steps, whatever --epochs says; null is no limit.
        row_tokens: Tokens of a packed row.
        batch_rows: Rows of an optimizer step, over all processes.
        micro_batch_rows: Rows of one forward pass; the rest is accumulated.
        optimizer: adamw, or muon: Muon for the matrices of the blocks, AdamW for the rest.
        learning_rate: Peak of the schedule.
        warmup_steps: Steps of linear warm-up.
        final_learning_rate_share: The cosine ends at this share of the peak.
        weight_decay: Of matrices and embeddings, not of norms and biases.
        clip: How gradients are clipped, once a step: none, norm or soft.
        clip_norm: Gradient norm gamma that clipping starts from.
        eval_every: Optimizer steps between validations (and saves of the best weights).
        eval_dialogues: Most validation dialogues; null is all.
        save_every: Optimizer steps between saves of the state to resume from.
        lora_rank: Rank of the adapters that are trained when --init is a chat model of another project.
        lora_alpha: What the adapters add is scaled by lora_alpha / lora_rank.
        seed: Of initial weights and data order.
        threads: CPU threads; null leaves torch's choice.
        device: auto, cpu, cuda or mps.
        precision: no (fp32) or bf16.
        floor_delta: Delta of the EOS floor that is stored with the checkpoint.
    """

    data: list[str]
    output: str
    init: str | None = None
    resume: bool = False
    model: ModelSettings = field(default_factory=ModelSettings)
    epochs: float = 1.0
    max_steps: int | None = None
    row_tokens: int = 512
    batch_rows: int = 16
    micro_batch_rows: int = 4
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_learning_rate_share: float = 0.1
    weight_decay: float = 0.05
    clip: Literal["none", "norm", "soft"] = "norm"
    clip_norm: float = 1.0
    eval_every: int = 100
    eval_dialogues: int | None = 500
    save_every: int = 100
    lora_rank: int = 16
    lora_alpha: float = 32.0
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    precision: Literal["no", "bf16"] = "no"
    floor_delta: int = 32

    def check(self) -> None:
        """Raises SettingsError that lists every fault at once."""
        faults = []
        counts = (
            "row_tokens",
            "batch_rows",
            "micro_batch_rows",
            "eval_every",
            "save_every",
            "floor_delta",
            "lora_rank",
        )
        for name in counts:
            if getattr(self, name) < 1:
                faults.append(f"--{name} must be at least 1, got {getattr(self, name)}")
        for name in ("weight_decay", "warmup_steps", "final_learning_rate_share"):
            if not getattr(self, name) >= 0:
                faults.append(f"--{name} must be at least 0, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**31:
            faults.append(f"--seed must be at least 0 and below 2147483648, got {self.seed}")
        for name, value in vars(self.model).items():
            if isinstance(value, int) and value < 1 and not isinstance(value, bool) and name != "short_conv":
                faults.append(f"--model.{name} must be at least 1, got {value}")
        if self.model.short_conv < 0 or self.model.short_conv == 1:
            faults.append(f"--model.short_conv must be 0 or at least 2, got {self.model.short_conv}")
        unknown = sorted(set(self.model.layer_types) - set(LAYER_TYPES))
        if unknown or not self.model.layer_types:
            faults.append(f"--model.layer_types has {unknown}; the mixers are {', '.join(LAYER_TYPES)}")
        if self.init is not None and self.model != ModelSettings():
            faults.append("--model.… and --init exclude each other: the shape comes from the checkpoint")
        for name in ("epochs", "learning_rate", "clip_norm", "lora_alpha"):
            if not getattr(self, name) > 0:
                faults.append(f"--{name} must be above 0, got {getattr(self, name)}")
        for name in ("max_steps", "eval_dialogues", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                faults.append(f"--{name} must be at least 1 or null, got {getattr(self, name)}")
        if self.row_tokens < 16:
            faults.append(f"--row_tokens must hold at least 16 tokens, got {self.row_tokens}")
        if not self.data:
            faults.append("--data needs at least one prepared set")
        if faults:
            raise SettingsError("; ".join(faults) + ".")
