"""Identity of a run: the settings and data that must not change between a stop and a resume."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatbot.checkpoint.location import ADAPTER_CONFIG, ADAPTER_WEIGHTS, CONFIG, SHARDS, WEIGHTS, resolve
from chatbot.checkpoint.lora import base_of
from training.data.turn_store import parse_source
from training.settings import StageSettings, TrainSettings, flag
from training.state.run_folder import ResumeError, check_folder, saved_steps
from training.state.saved_state import Progress, load_progress, new_progress

CHANGEABLE = ("data", "output", "resume", "threads", "tensorboard", "early_stopping_patience", "stages")
"""Settings that may change, or that the identity describes in another form (`data` and `stages`)."""

INIT_FILES = (CONFIG, SHARDS, WEIGHTS, "model-*-of-*.safetensors", ADAPTER_CONFIG, ADAPTER_WEIGHTS)
"""Files whose content identifies the checkpoint of --init."""


def identity_of(settings: TrainSettings, manifests: list[list[dict]]) -> dict[str, Any]:
    """Return the identity of a run, a JSON object.

    Args:
        settings: Settings of the run.
        manifests: Manifests of the sets of each stage.
    """
    ancestor = {} if settings.init is None else {"init_hash": checkpoint_hash(resolve(settings.init))}
    fixed = {name: value for name, value in asdict(settings).items() if name not in CHANGEABLE}
    if settings.init is not None:
        fixed["init"] = Path(settings.init).name
        del fixed["model"]  # the ancestor decides the shape
    if not settings.stages:
        return {"settings": fixed, "data": _describe_data(settings.data, manifests[0]), **ancestor}
    stages = []
    for number, stage in enumerate(settings.stages):
        data = _describe_data(settings.of_stage(number).data, manifests[number])
        stages.append({**asdict(stage), "data": data})
    return {"settings": fixed, "stages": stages, **ancestor}


def checkpoint_hash(folder: Path) -> str:
    """Return a hash of the model in a checkpoint folder: its shape and weights, for an adapter with those of its base model.

    Raises:
        CheckpointError: The base model of an adapter is missing.
    """
    digest = hashlib.sha256()
    for path in sorted(path for pattern in INIT_FILES for path in folder.glob(pattern)):
        with path.open("rb") as file:
            digest.update(f"{path.name}:{hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    if (folder / ADAPTER_CONFIG).is_file():
        digest.update(checkpoint_hash(base_of(folder)).encode())
    return digest.hexdigest()


def _describe_data(data: list[str], manifests: list[dict]) -> list[dict[str, Any]]:
    described = []
    for source, manifest in zip(map(parse_source, data), manifests, strict=True):
        splits = {name: split["content_hash"] for name, split in manifest["splits"].items()}
        entry = {"folder": Path(source.folder).name, "tokenizer_hash": manifest["tokenizer_hash"], **splits}
        entry["sources"] = [part["file"] for part in manifest["sources"]]
        if source.weight != 1:
            entry["weight"] = source.weight
        if source.replies_only:
            entry["learnt"] = "replies"
        described.append(entry)
    return described


def start_or_resume(settings: TrainSettings, output: Path, identity: dict[str, Any]) -> Progress:
    """Return the progress that a run starts from.

    Raises:
        ResumeError: With --resume, the folder has no saved state, or the state is damaged or belongs to another run.
            Without --resume, the folder holds a run or other files.
    """
    if settings.resume and not saved_steps(output):
        check_folder(output, resume=True)
        return new_progress()
    if settings.resume:
        progress, before = load_progress(output)
        changed = changed_settings(before, identity)
        if changed:
            raise ResumeError(
                f"{output} was started with other settings ({changed}). Resume with the same settings, or start a new"
                f" run from its weights: --init {output} and another --output."
            )
        return progress
    check_folder(output, resume=False)
    return new_progress()


def changed_settings(before: dict[str, Any], now: dict[str, Any]) -> str:
    """Return the differences between two identities in words; an empty string if they are equal.

    A setting that did not exist when the run was started is treated as if it had its default value.
    """
    defaults = {name: value for name, value in asdict(TrainSettings([], "")).items() if name not in CHANGEABLE}
    old, new = ({**defaults, **identity["settings"]} for identity in (before, now))
    for settings in (old, new):
        if settings["init"] is None and settings.get("model"):
            settings["model"] = {**defaults["model"], **settings["model"]}
        else:
            settings["model"] = None
    changed = [flag(name) for name in new if old.get(name) != new[name]]
    if before.get("init_hash", now.get("init_hash")) != now.get("init_hash") and "--init" not in changed:
        changed.append("the checkpoint of --init")  # runs that earlier versions started have no hash of that checkpoint
    if _hash(_stages(before)) != _hash(_stages(now)):
        changed.append("the stages")
    if _hash(before.get("data")) != _hash(now.get("data")):
        changed.append("the data")
    return f"{', '.join(changed)} changed" if changed else ""


def _stages(identity: dict[str, Any]) -> list[dict[str, Any]]:
    defaults = asdict(StageSettings())
    return [{**defaults, **stage} for stage in identity.get("stages", [])]


def _hash(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
