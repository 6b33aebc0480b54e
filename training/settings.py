"""Settings of a training run: defaults < --config file.yaml < flags, wherever --config stands."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Literal

from chatbot.errors import XianliaoError
from chatbot.model.layer_types import DEFAULT_LAYER_TYPES, LAYER_TYPES


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
        layer_types: Mixers of the blocks (`chatbot.model.config.LAYER_TYPES`), repeated until every block has one:
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
class Regularization:
    """What keeps a model from learning its data by heart (`training.optim.regularizers`); 0 leaves a thing out.

    Attributes:
        dropout: Share of the values that are dropped after each mixer and feed-forward layer.
        embedding_noise: Standard deviation of normal noise on the token embeddings.
        label_smoothing: Share of the target's mass that all tokens but [PAD], [CLS] and the end of turn get.
        fgm: Length of an adversarial step on the embeddings of a dialogue; a second pass learns from there.
        gradient_penalty: Weight of half the squared gradient of a dialogue's loss by its embeddings.
        vat: Length of the step on the embeddings that changes the prediction most; the change is penalised.
    """

    dropout: float = 0.0
    embedding_noise: float = 0.0
    label_smoothing: float = 0.0
    fgm: float = 0.0
    gradient_penalty: float = 0.0
    vat: float = 0.0


@dataclass(frozen=True)
class StageSettings:
    """A part of a run, after the one before; null takes the run's setting.

    Attributes:
        name: In the log.
        data: Prepared sets, DIR or DIR:weight, perhaps with :replies.
        epochs: Passes over the data.
        max_steps: Stop the stage after so many optimizer steps.
        row_tokens: Tokens of a packed row.
        batch_rows: Rows of an optimizer step.
        learning_rate: Peak of the stage's schedule.
        warmup_steps: Steps of linear warm-up.
        final_learning_rate_share: The stage's cosine ends at this share of the peak.
        weight_decay: Of matrices and embeddings.
        regularization: Against learning the data by heart.
    """

    name: str | None = None
    data: list[str] | None = None
    epochs: float | None = None
    max_steps: int | None = None
    row_tokens: int | None = None
    batch_rows: int | None = None
    learning_rate: float | None = None
    warmup_steps: int | None = None
    final_learning_rate_share: float | None = None
    weight_decay: float | None = None
    regularization: Regularization | None = None


@dataclass(frozen=True)
class TrainSettings:
    """A training run.

    Attributes:
        data: Prepared sets, all made with the same tokenizer; DIR:2 comes twice in an epoch, DIR:0.1 every tenth epoch. Of
            DIR:replies or DIR:2:replies only the replies are learnt: every second turn, those of the bot.
        output: Folder of the checkpoint, metrics.jsonl, curves.png and the state to resume from.
        init: Checkpoint folder to start from instead of new weights.
        resume: Continue the run that was stopped in --output.
        model: Shape of a new model.
        stages: Parts of the run, one after the other, each with settings of its own; none is one stage.
        epochs: Passes over the data.
        max_steps: Stop a stage after so many optimizer steps, whatever --epochs says; null is no limit.
        row_tokens: Tokens of a packed row.
        batch_rows: Rows of an optimizer step, over all processes.
        micro_batch_rows: Rows of one forward pass; the rest is accumulated. null finds out what memory holds.
        optimizer: adamw, or muon: Muon for the matrices of the blocks, AdamW for the rest.
        learning_rate: Peak of the schedule.
        warmup_steps: Steps of linear warm-up.
        final_learning_rate_share: The cosine ends at this share of the peak; 1 keeps the rate constant.
        weight_decay: Of matrices and embeddings, not of norms and biases.
        weight_average: The checkpoint has a moving average of the weights, which keeps this share of itself a step (0.99
            averages over about 100 steps, `training.optim.weight_average`); 0 is the weights as they are.
        clip: How gradients are clipped, once a step: none, norm or soft.
        clip_norm: Gradient norm gamma that clipping starts from.
        regularization: Against learning the data by heart.
        eval_every: Optimizer steps between validations (and saves of the best weights).
        eval_dialogues: Most validation dialogues; null is all. A set of weight below 1 gives that share of its own.
        save_every: Optimizer steps between saves of the state to resume from.
        lora_rank: Rank of the adapters that are trained when --init is a chat model of another project.
        lora_alpha: What the adapters add is scaled by lora_alpha / lora_rank.
        termination: softmax, or st or nmst for a head of its own for the end of turn (`chatbot.model.end_head`); keep is what
            --init has, softmax without. A head that is new to a trained model is first fitted to a few rows.
        termination_epsilon: How much of the other tokens' mass such a head takes at every token of a turn.
        termination_delay: Tokens of a turn before nmst takes any.
        direction: backward trains on dialogues in reverse order: a model that ranks replies; keep is what --init has.
        seed: Of initial weights, data order and noise.
        threads: CPU threads; null leaves torch's choice.
        device: auto, cpu, cuda or mps.
        precision: no (fp32) or bf16.
        gradient_checkpointing: Compute the blocks again on the way back instead of keeping what they computed.
        compile: Compile the model with torch.compile; a few percent, for a minute or more at the start.
        tensorboard: Also write the metrics to OUTPUT/tensorboard (extra `tensorboard`).
        floor_delta: Delta of the EOS floor that is stored with the checkpoint.
    """

    data: list[str]
    output: str
    init: str | None = None
    resume: bool = False
    model: ModelSettings = field(default_factory=ModelSettings)
    stages: list[StageSettings] = field(default_factory=list)
    epochs: float = 1.0
    max_steps: int | None = None
    row_tokens: int = 512
    batch_rows: int = 16
    micro_batch_rows: int | None = 4
    optimizer: Literal["adamw", "muon"] = "adamw"
    learning_rate: float = 1e-3
    warmup_steps: int = 50
    final_learning_rate_share: float = 0.1
    weight_decay: float = 0.05
    weight_average: float = 0.0
    clip: Literal["none", "norm", "soft"] = "norm"
    clip_norm: float = 1.0
    regularization: Regularization = field(default_factory=Regularization)
    eval_every: int = 100
    eval_dialogues: int | None = 500
    save_every: int = 100
    lora_rank: int = 16
    lora_alpha: float = 32.0
    termination: Literal["keep", "softmax", "st", "nmst"] = "keep"
    termination_epsilon: float = 1e-3
    termination_delay: int = 0
    direction: Literal["keep", "forward", "backward"] = "keep"
    seed: int = 0
    threads: int | None = None
    device: str = "auto"
    precision: Literal["no", "bf16"] = "no"
    gradient_checkpointing: bool = False
    compile: bool = False
    tensorboard: bool = False
    floor_delta: int = 32

    def of_stage(self, number: int) -> TrainSettings:
        """The settings of a stage, counted from 0, as those of a run of its own."""
        if not self.stages:
            return self
        own = {name: value for name, value in vars(self.stages[number]).items() if value is not None and name != "name"}
        return replace(self, stages=[], **own)

    def check(self) -> None:
        """Raises SettingsError that lists every fault at once."""
        faults = self.faults()
        if faults:
            raise SettingsError(one_sentence(faults))

    def faults(self) -> list[str]:
        """All that is wrong with the settings, each naming the flag."""
        faults = self._run_faults()
        for number, stage in enumerate(self.stages):
            label = f"stage {stage.name or number + 1}: "
            faults += [label + fault for fault in self.of_stage(number)._stage_faults()]
        if not self.stages:
            faults += self._stage_faults()
        return faults

    def _run_faults(self) -> list[str]:
        faults = [] if self.output else ["--output is needed: the folder of the run"]
        for name in ("eval_every", "save_every", "floor_delta", "lora_rank"):
            faults += _at_least(1, name, getattr(self, name))
        if not 0 <= self.seed < 2**31:
            faults.append(f"--seed must be at least 0 and below 2147483648, got {self.seed}")
        for name in ("micro_batch_rows", "eval_dialogues", "threads"):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                faults.append(f"--{name} must be at least 1 or null, got {getattr(self, name)}")
        if not 0 <= self.weight_average < 1:
            faults.append(f"--weight_average must be at least 0 and below 1, got {self.weight_average}")
        if not 0 < self.termination_epsilon < 1:
            faults.append(f"--termination_epsilon must be between 0 and 1, got {self.termination_epsilon}")
        faults += _at_least(0, "termination_delay", self.termination_delay)
        if self.termination_delay and self.termination != "nmst":
            faults.append("--termination_delay is for --termination nmst")
        if self.clip == "soft" and self.clip_norm == float("inf"):
            faults.append("--clip_norm must be finite with --clip soft")
        for name in ("clip_norm", "lora_alpha"):
            if not getattr(self, name) > 0:
                faults.append(f"--{name} must be above 0, got {getattr(self, name)}")
        return faults + self._model_faults()

    def _model_faults(self) -> list[str]:
        faults = []
        for name, value in vars(self.model).items():
            if isinstance(value, int) and not isinstance(value, bool) and name != "short_conv":
                faults += _at_least(1, f"model.{name}", value)
        if self.model.short_conv < 0 or self.model.short_conv == 1:
            faults.append(f"--model.short_conv must be 0 or at least 2, got {self.model.short_conv}")
        unknown = sorted(set(self.model.layer_types) - set(LAYER_TYPES))
        if unknown or not self.model.layer_types:
            near = [match for name in unknown for match in get_close_matches(name, LAYER_TYPES, 1)]
            hint = f" (did you mean {', '.join(near)}?)" if near else ""
            faults.append(f"--model.layer_types has {unknown}{hint}; the mixers are {', '.join(LAYER_TYPES)}")
        if self.init is not None and self.model != ModelSettings():
            faults.append("--model.… and --init exclude each other: the shape comes from the checkpoint")
        return faults

    def _stage_faults(self) -> list[str]:
        faults = []
        for name, least in (("batch_rows", 1), ("row_tokens", 16)):
            faults += _at_least(least, name, getattr(self, name))
        for name in ("weight_decay", "warmup_steps", "final_learning_rate_share"):
            faults += _at_least(0, name, getattr(self, name))
        for name in ("epochs", "learning_rate"):
            if not 0 < getattr(self, name) < float("inf"):
                faults.append(f"--{name} must be above 0, got {getattr(self, name)}")
        if self.max_steps is not None:
            faults += _at_least(1, "max_steps", self.max_steps)
        for name, value in vars(self.regularization).items():
            share = name in ("dropout", "label_smoothing")
            if not 0 <= value < (1 if share else float("inf")):
                what = "at least 0 and below 1" if share else "at least 0"
                faults.append(f"--regularization.{name} must be {what}, got {value}")
        perturbing = [name for name in PERTURBING if getattr(self.regularization, name)]
        if self.compile and perturbing:
            faults.append(f"--compile and --regularization.{perturbing[0]} exclude each other: compiled models miss it")
        if not self.data:
            faults.append("--data is needed: prepared sets, made by xianliao-prepare")
        for text in self.data:
            weight = parts_of(text)[1]
            if not 0 < weight < float("inf"):
                faults.append(f"--data {text}: the weight after the colon must be above 0")
        return faults


def one_sentence(faults: list[str]) -> str:
    """All faults after each other, with a full stop."""
    return "; ".join(faults).rstrip(".") + ("" if faults[-1].endswith("?") else ".")


PERTURBING = ("embedding_noise", "fgm", "gradient_penalty", "vat")


def parts_of(text: str) -> tuple[str, float, bool]:
    """Folder, weight and whether only replies are learnt of `DIR`, `DIR:weight`, `DIR:replies` or `DIR:weight:replies`.

    A colon with anything else after it belongs to the folder.
    """
    before = text.removesuffix(":replies")
    replies_only = before != text and bool(before)
    text = before if replies_only else text
    folder, _, weight = text.rpartition(":")
    try:
        return (folder, float(weight), replies_only) if folder else (text, 1.0, replies_only)
    except ValueError:
        return text, 1.0, replies_only


def _at_least(least: int, name: str, value: float) -> list[str]:
    return [] if value >= least else [f"--{name} must be at least {least}, got {value}"]
