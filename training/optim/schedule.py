"""Learning-rate schedule: linear warm-up, then a cosine."""

from __future__ import annotations

import math

from training.settings import TrainSettings


def schedule(step: int, total_steps: int, settings: TrainSettings) -> float:
    """Return the share of the peak learning rate at a step, counted from 0."""
    warmup = min(settings.warmup_steps, total_steps)
    if step < warmup:
        return (step + 1) / warmup
    progress = (step - warmup) / max(1, total_steps - warmup)
    floor = settings.final_learning_rate_share
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * progress))
