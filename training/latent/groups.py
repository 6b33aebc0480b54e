"""Parameter groups of a model with a latent."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

LATENT = "latent."
"""Prefix of the names of the latent's parameters."""


def latent_groups(model: nn.Module, decayed: Callable[[str, torch.Tensor], bool], decay: float) -> list[dict[str, Any]]:
    """Return AdamW's parameter groups: the language model with and without weight decay, the latent without."""
    named = list(model.named_parameters())
    others = [(name, p) for name, p in named if not name.startswith(LATENT)]
    return [
        {"params": [p for name, p in others if decayed(name, p)], "weight_decay": decay},
        {"params": [p for name, p in others if not decayed(name, p)], "weight_decay": 0.0},
        {"params": [p for name, p in named if name.startswith(LATENT)], "weight_decay": 0.0, "is_latent": True},
    ]
