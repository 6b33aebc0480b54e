"""What xianliao-train prints before and after a run; needs no torch."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from chatbot.language.translation import translate
from chatbot.text.prepared_set import larger_valid_share
from training.arguments import LISTS
from training.reporting.samples import summary_of_samples
from training.settings import TrainSettings, flag, split_source
from training.state.run_folder import METRICS, SAMPLES, SETTINGS, read_log

FEW_DIALOGUES = 50
"""Minimum number of validation dialogues; with fewer, their figure is called rough."""
CLEAR_FALL = 0.02
"""Minimum fall of the loss at the last validation, in nats/unit, for the advice to train longer."""


def describe(settings: TrainSettings, origins: dict[str, str]) -> str:
    """Return one line with the settings that are not defaults, grouped by their origin."""
    values, defaults = dict(_leaves(asdict(settings))), dict(_leaves(asdict(TrainSettings([], ""))))
    values["stages"] = [
        {name: value for name, value in asdict(stage).items() if value is not None} for stage in settings.stages
    ]
    groups: dict[str, list[str]] = {}
    for name, origin in origins.items():
        if name in values and values[name] != defaults[name]:
            value = " ".join(values[name]) if name in LISTS else values[name]
            groups.setdefault(origin, []).append(f"{name.replace('_', '-')} {value}")
    listed = "; ".join(f"{origin}: {', '.join(entries)}" for origin, entries in groups.items())
    return translate(f"settings by {listed} (all others are defaults; {SETTINGS} in --output lists them)")


def _leaves(content: dict, prefix: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in content.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{prefix}{name}.")
        else:
            yield prefix + name, value


def summary_of(settings: TrainSettings, record: dict[str, Any]) -> str:
    """Return the lines after a run: steps, validation before and after, replies before and after, the next command.

    Args:
        settings: Settings of the run.
        record: Result of `training.run.train`.
    """
    lines = [f"{settings.output}: {record['step']} steps, {record['tokens']} tokens"]
    best, before, count = record["best"], record.get("before"), record["valid_dialogues"]
    if best is not None and before is not None:
        lines.append(f"validation before and after: {before:.3f} -> {best:.3f} nats/unit ({count} dialogues)")
    elif best is not None:
        lines.append(f"best validation: {best:.3f} nats/unit ({count} dialogues)")
    if best is not None and count < FEW_DIALOGUES:
        lines.append(_rough_warning(settings, count))
    rounds = record.get("validations_since_best", 0)
    if 0 < settings.early_stopping_patience <= rounds and record["stage_step"] < record["stage_steps"]:
        lines.append(
            f"stopped early: no improvement in {rounds} consecutive validations after step {record['best_step']}"
        )
    fall, longer = _still_falling(settings, record)
    if longer:
        lines.append(f"validation was still falling at the end ({fall} nats/unit): use another --output and {longer}")
    step = record["step"] if record["best_step"] is None else record["best_step"]
    lines += summary_of_samples(read_log(Path(settings.output) / SAMPLES), step)
    if record["stopped_by"]:
        lines.append("next: the same command with --resume")
    elif record["step"] and record.get("direction") != "backward":
        lines.append(f"next: xianliao-chat --checkpoint {settings.output}")
    return "\n".join(map(translate, lines))


def _rough_warning(settings: TrainSettings, count: int) -> str:
    """Return the line about few validation dialogues: a warning only where a larger share would help."""
    sets = [split_source(text)[0] for text in settings.data]
    share = larger_valid_share(sets[0], FEW_DIALOGUES / count) if len(sets) == 1 and count else None
    if share is None:
        return f"this figure is rough: {count} dialogues are held out, and only more chats would make it exact"
    return f"warning: {count} validation dialogues give a rough figure; next time, prepare with --valid-share {share}"


def _still_falling(settings: TrainSettings, record: dict[str, Any]) -> tuple[str, str]:
    """Return the last fall and the flag of a longer run if the last validation is best and fell clearly, else ""."""
    if record["stopped_by"] or record["best_step"] != record["step"] or settings.stages or settings.latent != "keep":
        return "", ""
    entries = [entry.get("valid_nats_per_unit") for entry in read_log(Path(settings.output) / METRICS)]
    values = [value for value in (record.get("before"), *entries) if value is not None]
    if len(values) < 2 or values[-2] - values[-1] < CLEAR_FALL:
        return "", ""
    name = next((name for name in ("max_steps", "min_steps") if getattr(settings, name) == record["step"]), "epochs")
    longer = f"{flag(name)} {2 * getattr(settings, name):g}"
    return f"{values[-2]:.3f} -> {values[-1]:.3f}", longer
