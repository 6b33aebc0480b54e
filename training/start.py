"""Before the first step: the model, what must not change when a run goes on, and whose folder it is."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

import torch

from chatbot.checkpoint.folder import TRAINING, load_model, resolve
from chatbot.errors import last_line
from chatbot.model.config import XianliaoConfig
from chatbot.model.end_head import with_termination
from chatbot.model.hf_chat_model import ForeignForCausalLM
from chatbot.model.layer_types import repeat_layer_types
from chatbot.model.network import XianliaoForCausalLM
from chatbot.storage import LOCK, only_one, read_json
from chatbot.text.prepared_set import load_manifest
from chatbot.text.tokenizer import DialogueTokenizer
from training.batching import parse_source
from training.lora import add_lora
from training.report import METRICS, SAMPLES
from training.resume import FOLDER, ResumeError, load_progress, saved_steps
from training.settings import ModelSettings, SettingsError, StageSettings, TrainSettings

SETTINGS = "settings.yaml"
BEFORE_THE_FIRST_SAVE = {METRICS, SAMPLES, FOLDER, LOCK, SETTINGS, "tensorboard"}
NEW_RUN = {
    **{"step": 0, "stage": 0, "stage_step": 0, "tokens": 0, "seconds": 0.0, "clipped": 0},
    **{"best": None, "best_step": None, "micro_batch_rows": None},
}
CHANGEABLE = ("data", "output", "resume", "threads", "tensorboard", "stages")


def own_folder(output: Path) -> AbstractContextManager[None]:
    """Keeps a second run out of a folder for as long as this one lasts; a killed run holds nothing.

    Raises:
        ResumeError: Another run is in it.
    """
    return only_one(output, ResumeError(f"Another run is writing to {output}; wait for it or give another --output."))


def load_manifests(settings: TrainSettings) -> list[list[dict]]:
    """The manifests of the sets of each stage.

    Raises:
        FileError: A set is missing or damaged.
        SettingsError: The sets have different tokenizers.
    """
    stages = [settings.of_stage(number) for number in range(max(1, len(settings.stages)))]
    manifests = [[load_manifest(parse_source(text).folder) for text in stage.data] for stage in stages]
    if len({manifest["tokenizer_hash"] for stage in manifests for manifest in stage}) > 1:
        raise SettingsError("The prepared sets have different tokenizers; prepare them with one --tokenizer.")
    return manifests


def load_or_build(settings: TrainSettings, tokenizer: DialogueTokenizer) -> XianliaoForCausalLM:
    """The model a run starts from.

    Raises:
        SettingsError: The data was prepared with another tokenizer, or the shape is not one that a model can have.
        CheckpointError: The checkpoint cannot be read.
    """
    if settings.init is None:
        head = {"termination_epsilon": settings.termination_epsilon, "termination_delay": settings.termination_delay}
        kinds = {"termination": "softmax", "direction": "forward"}
        asked = {name: getattr(settings, name) for name in kinds}
        kinds |= {name: kind for name, kind in asked.items() if kind != "keep"}
        return build_model(settings.model, tokenizer, **kinds, **head)
    path = resolve(settings.init)
    if DialogueTokenizer.load(path).to_json() != tokenizer.to_json():
        raise SettingsError(
            f"The data and {path} have different tokenizers; prepare the data again with --tokenizer {path}."
        )
    return with_settings(load_model(path, merge=False), settings)


def with_settings(model: XianliaoForCausalLM | ForeignForCausalLM, settings: TrainSettings):
    """A loaded model with what the settings change of it: a LoRA adapter, another termination, its direction.

    Raises:
        SettingsError: Another project's chat model cannot have them.
    """
    if not isinstance(model, XianliaoForCausalLM):
        if settings.termination != "keep" or settings.direction != "keep":
            raise SettingsError("--termination and --direction are for models of our own; leave them out with --init.")
        return add_lora(model, settings)
    if settings.termination != "keep":
        head = (settings.termination, settings.termination_epsilon, settings.termination_delay)
        model = with_termination(model, *head)
    if settings.direction != "keep":
        model.config.direction = settings.direction
    return model


def needs_fit(settings: TrainSettings, model: torch.nn.Module) -> bool:
    """Whether the model has an end head that the checkpoint it starts from had not."""
    head = getattr(model, "end_head", None)
    return settings.init is not None and head is not None and not head.weight.any()


def ancestor_of(checkpoint: Path) -> dict:
    """How the checkpoint that a run starts from was made, as far as it says."""
    path = checkpoint / TRAINING
    return read_json(path) if path.is_file() else {"imported_from": checkpoint.name}


def build_model(shape: ModelSettings, tokenizer: DialogueTokenizer, **settings) -> XianliaoForCausalLM:
    """A new model of a shape, for a tokenizer; `settings` are other fields of its config.

    Raises:
        SettingsError: The shape is not one that a model can have.
    """
    sizes = asdict(shape) | settings
    layer_types = repeat_layer_types(sizes.pop("layer_types"), shape.num_hidden_layers)
    ids = {"pad_token_id": tokenizer.pad_id, "bos_token_id": tokenizer.cls_id, "eos_token_id": tokenizer.sep_id}
    try:
        config = XianliaoConfig(vocab_size=tokenizer.vocab_size, layer_types=layer_types, **ids, **sizes)
    except Exception as error:  # the strict validators raise several kinds
        raise SettingsError(f"--model.…: {last_line(error)}") from None
    return XianliaoForCausalLM(config)


def identity_of(settings: TrainSettings, manifests: list[list[dict]]) -> dict:
    """What must not change when a run is resumed."""
    kept = {name: value for name, value in asdict(settings).items() if name not in CHANGEABLE}
    if settings.init is not None:
        kept["init"] = Path(settings.init).name
        del kept["model"]  # the shape is the ancestor's
    if not settings.stages:
        return {"settings": kept, "data": _describe_data(settings.data, manifests[0])}
    stages = []
    for number, stage in enumerate(settings.stages):
        data = _describe_data(settings.of_stage(number).data, manifests[number])
        stages.append({**asdict(stage), "data": data})
    return {"settings": kept, "stages": stages}


def _without(values: dict, *names: str) -> dict:
    return {name: value for name, value in values.items() if name not in names}


def _describe_data(data: list[str], manifests: list[dict]) -> list[dict]:
    described = []
    for source, manifest in zip(map(parse_source, data), manifests, strict=True):
        splits = {name: split["content_hash"] for name, split in manifest["splits"].items()}
        entry = {"folder": Path(source.folder).name, "tokenizer_hash": manifest["tokenizer_hash"], **splits}
        entry |= {"sources": [part["file"] for part in manifest["sources"]]}
        entry |= {} if source.weight == 1 else {"weight": source.weight}
        described.append({**entry, "learnt": "replies"} if source.replies_only else entry)
    return described


def start_or_resume(settings: TrainSettings, output: Path, identity: dict) -> dict:
    """How far the run is.

    Raises:
        ResumeError: There is nothing to resume, it was another run, or the folder holds other things.
    """
    if settings.resume:
        progress = load_progress(output, NEW_RUN)
        before = progress.pop("identity")
        changed = changed_settings(before, identity)
        if changed:
            raise ResumeError(
                f"{output} was started with other settings ({changed}); use the same, or another --output."
            )
        return progress
    if saved_steps(output):
        raise ResumeError(f"{output} already holds a run; give --resume to continue it, or another --output.")
    if {path.name for path in output.iterdir()} - BEFORE_THE_FIRST_SAVE:
        raise ResumeError(f"{output} is not empty; give another --output.")
    return dict(NEW_RUN)


def changed_settings(before: dict, now: dict) -> str:
    """Says what differs between two identities; empty when nothing does.

    A setting that is younger than the run counts as having had its default.
    """
    defaults = _without(asdict(TrainSettings([], "")), *CHANGEABLE)
    old, new = ({**defaults, **identity["settings"]} for identity in (before, now))
    for settings in (old, new):
        if settings["init"] is None and settings.get("model"):
            settings["model"] = {**defaults["model"], **settings["model"]}
        else:
            settings["model"] = None
    changed = [f"--{name}" for name in new if old.get(name) != new[name]]
    if _hash(_stages(before)) != _hash(_stages(now)):
        changed.append("the stages")
    if _hash(before.get("data")) != _hash(now.get("data")):
        changed.append("the data")
    return f"{', '.join(changed)} changed" if changed else ""


def _stages(identity: dict) -> list[dict]:
    defaults = asdict(StageSettings())
    return [{**defaults, **stage} for stage in identity.get("stages", [])]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
