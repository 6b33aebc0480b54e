"""Settings of a training run: defaults < --config file.yaml < flags.

The help text of a setting is part of its field, so that `--help` does not depend on docstrings, which python -OO
removes.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from difflib import get_close_matches
from typing import Any, Literal

from chatbot.errors import XianliaoError
from chatbot.model.layer_types import DEFAULT_LAYER_TYPES, LAYER_TYPES
from training.latent.faults import latent_faults
from training.optim.limits import MAX_WEIGHT, batch_faults, size_faults


class SettingsError(XianliaoError):
    """Invalid settings, or settings that exclude each other; the message names the flags."""


def setting(default: Any, text: str) -> Any:
    """Return a dataclass field with a default and a help text."""
    return field(default=default, metadata={"help": text})


def flag(name: str) -> str:
    """Return the command-line flag of a setting: `max_steps` -> `--max-steps`."""
    return "--" + name.replace("_", "-")


@dataclass(frozen=True)
class ModelSettings:
    """Shape of a new model; not allowed with --init."""

    hidden_size: int = setting(384, "width of the residual stream")
    num_hidden_layers: int = setting(6, "number of blocks")
    num_attention_heads: int = setting(6, "number of heads of every mixer")
    head_dim: int = setting(64, "width of a head")
    intermediate_size: int = setting(1536, "width of the feed-forward layers")
    layer_types: list[str] = field(
        default_factory=lambda: list(DEFAULT_LAYER_TYPES),
        metadata={
            "help": "mixers of the blocks (see chatbot/model/layer_types.py), repeated until every block has one"
        },
    )
    short_conv: int = setting(4, "number of tokens that the short convolution before each mixer sees; 0 omits it")
    output_gate: bool = setting(True, "gate the mixers' output by their input")
    positions: Literal["rope", "learned", "none"] = setting(
        "rope", "position encoding; only mixers without decay need one"
    )
    linear_rope: bool = setting(False, "apply rope to linear attention with a feature map as well")
    max_position_embeddings: int = setting(
        1024, "maximum length of a dialogue, in tokens, with learned positions or a Synthesizer mixer"
    )
    sliding_window: int = setting(128, "number of latest tokens that sliding_softmax sees")


@dataclass(frozen=True)
class Regularization:
    """Regularizers, described in `training.optim.regularizers`; 0 switches one off."""

    dropout: float = setting(0.0, "share of values dropped after each mixer and feed-forward layer")
    embedding_noise: float = setting(0.0, "standard deviation of normal noise added to the token embeddings")
    label_smoothing: float = setting(
        0.0,
        "share of a target's probability mass that is spread over all tokens but [PAD], [CLS] and the end of turn;"
        " targets that are the end of turn are not smoothed",
    )
    fgm: float = setting(
        0.0,
        "length of an adversarial step on the embeddings of a dialogue; a second pass trains on the embeddings moved by this"
        " step",
    )
    gradient_penalty: float = setting(0.0, "weight of half the squared gradient of a dialogue's loss by its embeddings")
    vat: float = setting(
        0.0, "length of the step on the embeddings that changes the prediction most; the change is penalised"
    )


@dataclass(frozen=True)
class LatentTraining:
    """Schedule of a run with --latent, described in `training.latent.schedule`."""

    autoencoding_share: float = setting(0.0, "share of the steps with a frozen language model and no KL")
    cycling_share: float = setting(0.8, "share of the steps in which the weight of the KL rises in cycles")
    cycles: int = setting(1, "number of cycles in which the weight of the KL rises")
    free_nats: float = setting(0.12, "KL per dimension, in nats, averaged over a micro-batch, that costs nothing")
    word_dropout: float = setting(0.15, "share of the reply's input words that are hidden")
    bag_of_words: float = setting(1.0, "initial weight of the bag-of-words loss")
    final_bag_of_words: float = setting(0.3, "weight of the bag-of-words loss after the cycles")
    language_model_rate: float = setting(0.04, "learning rate of the language model after the frozen steps, as a share")
    min_shuffle_cost: float = setting(
        0.05, "the run stops if the z of another reply raises the loss by less, in nats/unit; 0 never stops it"
    )


@dataclass(frozen=True)
class StageSettings:
    """One stage of a run.

    `name` labels the stage in the log. Every other field replaces the run's setting of the same name during the stage;
    None keeps the run's setting.
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
    """Settings of a training run; each field carries its help text as metadata."""

    data: list[str] = field(
        metadata={
            "help": "prepared sets, all made with the same tokenizer: DIR, DIR:weight, DIR:replies or"
            " DIR:weight:replies. DIR:2 occurs twice in an epoch, DIR:0.1 every tenth epoch; :replies learns only the"
            " bot's turns (every second turn)"
        }
    )
    output: str = field(
        metadata={"help": "folder of the checkpoint, metrics.jsonl, curves.png and the saved states; created"}
    )
    init: str | None = setting(
        None,
        "checkpoint folder, or OWNER/NAME[@REVISION] of the Hugging Face hub, to start from instead of new weights",
    )
    resume: bool = setting(False, "continue the run that was stopped in --output")
    model: ModelSettings = field(default_factory=ModelSettings, metadata={"help": "shape of a new model"})
    stages: list[StageSettings] = field(
        default_factory=list,
        metadata={"help": "consecutive stages, each with its own data and settings (YAML only); empty means one stage"},
    )
    epochs: float = setting(1.0, "passes over the data")
    max_steps: int | None = setting(
        None, "stop a stage after this many optimizer steps, even before --epochs is reached; null sets no limit"
    )
    min_steps: int = setting(
        0,
        "minimum number of steps of a stage, with more passes over a small set; --max-steps and a flag --epochs come first",
    )
    row_tokens: int = setting(512, "length of a packed row, in tokens")
    batch_rows: int = setting(16, "rows of an optimizer step, summed over all processes")
    micro_batch_rows: int | None = setting(
        4, "rows of one forward pass; gradients are accumulated over the batch. null finds the largest number that fits"
    )
    optimizer: Literal["adamw", "muon"] = setting(
        "adamw", "adamw, or muon: Muon for the matrices of the blocks and AdamW for the other parameters"
    )
    learning_rate: float = setting(1e-3, "peak learning rate")
    warmup_steps: int = setting(50, "steps of linear warm-up")
    final_learning_rate_share: float = setting(
        0.1, "share of the peak at which the cosine ends; 1 keeps the rate constant"
    )
    weight_decay: float = setting(
        0.05, "decoupled weight decay of matrices and embeddings; biases, norms, rates and convolutions are not decayed"
    )
    weight_average: float = setting(
        0.0,
        "decay per step of a moving average of the weights, which is validated and saved as the checkpoint;"
        " 0.99 averages over about 100 steps, 0 saves the weights themselves",
    )
    clip: Literal["none", "norm", "soft"] = setting("norm", "method of gradient clipping, applied once per step")
    clip_norm: float = setting(1.0, "gradient norm gamma above which gradients are clipped")
    regularization: Regularization = field(default_factory=Regularization, metadata={"help": "regularization options"})
    eval_every: int = setting(100, "optimizer steps between validations; the best weights are saved")
    eval_dialogues: int | None = setting(
        500,
        "maximum number of validation dialogues, null for all; a data set of weight w < 1 gives only a share w",
    )
    early_stopping_patience: int = setting(
        0, "number of consecutive validations without improvement after which a stage ends; 0 never ends it early"
    )
    save_every: int = setting(100, "optimizer steps between saved states")
    lora_rank: int = setting(16, "rank of the LoRA adapters if --init is a chat model of another project")
    lora_alpha: float = setting(32.0, "LoRA scale: the adapters' output is multiplied by lora_alpha / lora_rank")
    termination: Literal["keep", "softmax", "st", "nmst"] = setting(
        "keep",
        "softmax, or a separate end-of-turn head: st or nmst (chatbot/model/end_head.py). keep uses the kind of --init,"
        " softmax without --init. A head that is new to a trained model is first fitted to a few rows of the training data",
    )
    termination_epsilon: float = setting(
        1e-3, "share of the other tokens' probability that st and nmst move to the end of turn at every token"
    )
    termination_delay: int = setting(0, "number of tokens of a turn before nmst moves any probability")
    direction: Literal["keep", "forward", "backward"] = setting(
        "keep", "backward trains on reversed dialogues, for a model that ranks replies; keep uses the kind of --init"
    )
    latent: Literal["keep", "gaussian", "discrete"] = setting(
        "keep",
        "gaussian or discrete trains a latent variable of the reply on top of --init, for several ways to say a reply"
        " (chatbot/model/latent); keep trains as usual",
    )
    latent_size: int = setting(16, "size of the latent")
    latent_codes: int = setting(16, "number of values of a discrete latent")
    latent_training: LatentTraining = field(default_factory=LatentTraining, metadata={"help": "schedule of the latent"})
    seed: int = setting(0, "seed of the initial weights, the data order and the noise")
    threads: int | None = setting(None, "CPU threads; null lets torch choose")
    device: str = setting("auto", "auto, cpu, cuda or mps")
    precision: Literal["no", "bf16"] = setting("no", "no (fp32) or bf16")
    gradient_checkpointing: bool = setting(
        False, "recompute the blocks in the backward pass instead of storing their activations"
    )
    compile: bool = setting(False, "compile the model with torch.compile: a few percent faster after a minute or more")
    tensorboard: bool = setting(False, "also write the metrics to OUTPUT/tensorboard (needs the extra `tensorboard`)")
    floor_delta: int = setting(32, "delta of the EOS floor in tokens, stored with the checkpoint")

    def of_stage(self, number: int) -> TrainSettings:
        """Return the settings of a run that consists of one stage of this run, counted from 0."""
        if not self.stages:
            return self
        changes: dict[str, Any] = {
            name: value for name, value in vars(self.stages[number]).items() if value is not None and name != "name"
        }
        return replace(self, stages=[], **changes)

    def check(self) -> None:
        """Raise SettingsError with every fault at once."""
        faults = self.faults()
        if faults:
            raise SettingsError(one_sentence(faults))

    def faults(self) -> list[str]:
        """Return every fault of the settings; each names its flag."""
        faults = self._run_faults() + self._model_faults()
        for number, stage in enumerate(self.stages):
            label = f"stage {stage.name or number + 1}: "
            faults += [label + fault for fault in self.of_stage(number)._stage_faults()]
        if not self.stages:
            faults += self._stage_faults()
        return faults

    def _run_faults(self) -> list[str]:
        faults = [] if self.output else ["--output is missing: give the folder of the run"]
        by_stage = vars(StageSettings())
        faults += size_faults({name: value for name, value in vars(self).items() if name not in by_stage}, flag)
        faults += size_faults(vars(self.latent_training), flag, "latent_training.")
        for name in ("eval_every", "save_every", "floor_delta", "lora_rank"):
            faults += _below(1, name, getattr(self, name))
        if not 0 <= self.seed < 2**31:
            faults.append(f"--seed must be at least 0 and below 2147483648, got {self.seed}")
        for name in ("micro_batch_rows", "eval_dialogues", "threads"):
            value = getattr(self, name)
            if value is not None and value < 1:
                faults.append(f"{flag(name)} must be at least 1 or null, got {value}")
        if not 0 <= self.weight_average < 1:
            faults.append(f"--weight-average must be at least 0 and below 1, got {self.weight_average}")
        if not 0 < self.termination_epsilon < 1:
            faults.append(f"--termination-epsilon must be between 0 and 1, got {self.termination_epsilon}")
        for name in ("termination_delay", "early_stopping_patience"):
            faults += _below(0, name, getattr(self, name))
        if self.termination_delay and self.termination != "nmst":
            faults.append("--termination-delay requires --termination nmst")
        if self.clip == "soft" and self.clip_norm == float("inf"):
            faults.append("--clip-norm must be finite with --clip soft")
        faults += _below(1, "latent_size", self.latent_size) + _below(2, "latent_codes", self.latent_codes)
        faults += [] if self.latent == "keep" else latent_faults(self, flag)
        for name in ("clip_norm", "lora_alpha"):
            value = getattr(self, name)
            if not value > 0:
                faults.append(f"{flag(name)} must be above 0, got {value}")
        return faults

    def _model_faults(self) -> list[str]:
        faults = size_faults(vars(self.model), flag, "model.")
        for name, value in vars(self.model).items():
            if isinstance(value, int) and not isinstance(value, bool) and name != "short_conv":
                faults += _below(1, f"model.{name}", value)
        if self.model.short_conv < 0 or self.model.short_conv == 1:
            faults.append(f"--model.short-conv must be 0 or at least 2, got {self.model.short_conv}")
        unknown = sorted(set(self.model.layer_types) - set(LAYER_TYPES))
        if unknown or not self.model.layer_types:
            near = [match for name in unknown for match in get_close_matches(name, LAYER_TYPES, 1)]
            hint = f" (did you mean {', '.join(near)}?)" if near else ""
            problem = f"unknown mixers {unknown}{hint}" if unknown else "no mixer"
            faults.append(f"--model.layer-types has {problem}; the mixers are {', '.join(LAYER_TYPES)}")
        if self.init is not None and self.model != ModelSettings():
            faults.append("--model.… and --init exclude each other: the shape comes from the checkpoint")
        return faults

    def _stage_faults(self) -> list[str]:
        faults = _below(1, "batch_rows", self.batch_rows) + _below(16, "row_tokens", self.row_tokens)
        faults += size_faults({name: getattr(self, name) for name in vars(StageSettings()) if name != "name"}, flag)
        faults += batch_faults(self.row_tokens, self.batch_rows)
        for name in ("weight_decay", "min_steps", "warmup_steps", "final_learning_rate_share"):
            faults += _below(0, name, getattr(self, name))
        for name in ("epochs", "learning_rate"):
            value = getattr(self, name)
            if not 0 < value < float("inf"):
                faults.append(f"{flag(name)} must be above 0 and finite, got {value}")
        if self.max_steps is not None:
            faults += _below(1, "max_steps", self.max_steps)
        for name, value in vars(self.regularization).items():
            is_share = name in ("dropout", "label_smoothing")
            if not 0 <= value < (1 if is_share else float("inf")):
                allowed = "at least 0 and below 1" if is_share else "at least 0 and finite"
                faults.append(f"{flag('regularization.' + name)} must be {allowed}, got {value}")
        perturbing = [name for name in PERTURBING if getattr(self.regularization, name)]
        if self.compile and perturbing:
            faults.append(
                f"--compile and {flag('regularization.' + perturbing[0])} exclude each other:"
                " a compiled model ignores the perturbation"
            )
        if not self.data:
            faults.append("--data is missing: give prepared sets, made by xianliao-prepare")
        for text in self.data:
            weight = split_source(text)[1]
            if not 0 < weight <= MAX_WEIGHT:
                faults.append(f"--data {text}: the weight after the colon must be above 0 and at most {MAX_WEIGHT}")
        return faults


PERTURBING = ("embedding_noise", "fgm", "gradient_penalty", "vat")
"""Regularizers that change the output of the token embedding."""


def one_sentence(faults: list[str]) -> str:
    """Join faults with semicolons and end them with a full stop, unless the last one ends with a question mark."""
    return "; ".join(faults).rstrip(".") + ("" if faults[-1].endswith("?") else ".")


def split_source(text: str) -> tuple[str, float, bool]:
    """Split `DIR`, `DIR:weight`, `DIR:replies` or `DIR:weight:replies` into folder, weight and `replies_only`.

    A colon followed by anything else belongs to the folder name.
    """
    without_suffix = text.removesuffix(":replies")
    replies_only = without_suffix != text and bool(without_suffix)
    text = without_suffix if replies_only else text
    folder, _, weight = text.rpartition(":")
    try:
        return (folder, float(weight), replies_only) if folder else (text, 1.0, replies_only)
    except ValueError:
        return text, 1.0, replies_only


def _below(minimum: int, name: str, value: float) -> list[str]:
    return [] if value >= minimum else [f"{flag(name)} must be at least {minimum}, got {value}"]
