"""An exponential moving average of the weights: what the noise of a high learning rate adds cancels out in it.

Polyak and Juditsky 1992; with a rate that stays high, Izmailov et al. 2018 (arXiv:1803.05407) and, for language models,
Kaddour 2022 (arXiv:2209.14981).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch.optim.swa_utils import get_ema_multi_avg_fn

WARMUP = 10
"""Of the first n averages (1 + n) / (WARMUP + n) is kept, so that the initial weights are soon forgotten."""


class WeightAverage:
    """The average of a model's trained parameters.

    Args:
        model: On its device, with the weights that the average begins with.
        decay: Share of the average that a step keeps: 0.99 averages over about the last 100 steps.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.decay = decay
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.averages = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def update(self, steps: int) -> None:
        """Takes the weights in, after `steps` optimizer steps of the run."""
        decay = min(self.decay, (1 + steps) / (WARMUP + steps))
        get_ema_multi_avg_fn(decay)(list(self.averages.values()), list(self.parameters.values()), None)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self) -> None:
        for name, parameter in self.parameters.items():
            parameter.data, self.averages[name] = self.averages[name], parameter.data

    def load(self, averages: dict[str, torch.Tensor]) -> None:
        """Goes on with saved averages, by the names of the parameters.

        Raises:
            KeyError, RuntimeError: They are those of another model.
        """
        for name, average in self.averages.items():
            average.copy_(averages[name])
