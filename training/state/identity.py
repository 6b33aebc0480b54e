"""Identity of a run: what must not change between a stop and a resume."""

from __future__ import annotations

import hashlib
import json
from contextlib import AbstractContextManager
from dataclasses import asdict
from pathlib import Path

from chatbot.storage import LOCK, exclusive
from training.data.turn_store import parse_source
from training.reporting.logs import METRICS, SAMPLES
from training.settings import StageSettings, TrainSettings
from training.state.saved_state import FOLDER, ResumeError, load_progress, saved_steps

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
    return exclusive(output, ResumeError(f"Another run is writing to {output}; wait for it or give another --output."))


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
