"""Exponential moving average of the weights; it cancels the noise that a high learning rate adds to them.

Polyak and Juditsky 1992; with a learning rate that remains high, Izmailov et al. 2018 (arXiv:1803.05407) and, for language
models, Kaddour 2022 (arXiv:2209.14981).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP = 10
"""After n steps the decay is at most (1 + n) / (WARMUP + n), so that the average soon forgets the initial weights."""


class WeightAverage:
    """Moving average of a model's trained parameters: average <- decay average + (1 - decay) weights.

    Args:
        model: Model on its device; its weights are the first average.
        decay: Share of the average that a step keeps: 0.99 averages over about the last 100 steps.

    Attributes:
        averages: Average by parameter name.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages: dict[str, torch.Tensor] = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Include the current weights, after `steps` optimizer steps of the run."""
        decay = min(self.decay, (1 + steps) / (WARMUP + steps))
        get_ema_multi_avg_fn(decay)(list(self.averages.values()), list(self.parameters.values()), None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights while the block runs."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data

    def load(self, averages: dict[str, torch.Tensor]) -> None:
        """Continue with saved averages, by parameter name.

        Raises:
            KeyError, RuntimeError: The averages belong to another model.
        """
        for name, average in self.averages.items():
            average.copy_(averages[name])
