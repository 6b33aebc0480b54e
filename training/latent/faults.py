"""Faults of the settings of a run with --latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from training.settings import TrainSettings


def latent_faults(settings: TrainSettings, flag: Callable[[str], str]) -> list[str]:
    """Return the faults of the settings of a run with --latent; `flag` spells the flag of a setting."""
    excluded = {
        "--init is missing: --latent trains on top of a checkpoint": settings.init is None,
        "--latent needs --optimizer adamw": settings.optimizer != "adamw",
        "--latent and --compile exclude each other": settings.compile,
        "--latent excludes --termination st and nmst, and --direction backward": settings.termination
        not in ("keep", "softmax")
        or settings.direction == "backward",
        "--latent runs in a single stage": len(settings.stages) > 1,
        "--latent supports no regularization but dropout": any(
            value for name, value in vars(settings.regularization).items() if name != "dropout"
        ),
    }
    faults, schedule = [fault for fault, holds in excluded.items() if holds], settings.latent_training
    for name, value in vars(schedule).items():
        most = 1 if name.endswith(("share", "dropout", "rate")) else float("inf")
        if not (name == "cycles") <= value <= most:
            faults.append(f"{flag('latent_training.' + name)} has the value {value}, which is out of range")
    if schedule.autoencoding_share + schedule.cycling_share > 1:
        faults.append("--latent-training.autoencoding-share and .cycling-share must not be above 1 together")
    return faults
