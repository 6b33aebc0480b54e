"""xianliao-train that saves the gradient of its first step and stops: python -m tests.training.first_gradient …

    FILE KIND FLAGS…

The model is in float64. KIND is `sum` (the real code) or `clipped` (the wrong way: each micro-batch clipped alone).
"""

from __future__ import annotations

import os
import sys

import torch

import training.step
import training.trained_model
from training.cli import main
from training.optim.clipping import clip_gradients
from training.optim.regularizers import Objective


def stop_with_gradient(path: str, kind: str) -> None:
    build, backward = training.trained_model.load_or_build, Objective.backward

    def clip_each(self, batch, items, run_backward, no_sync):
        saved_gradients = [None if p.grad is None else p.grad.clone() for p in self.model.parameters()]
        self.model.zero_grad()
        result = backward(self, batch, items, run_backward, no_sync)
        clip_gradients(self.model.parameters(), "norm", 0.01)
        for parameter, before in zip(self.model.parameters(), saved_gradients, strict=True):
            if before is not None and parameter.grad is not None:
                parameter.grad += before
        return result

    def keep(parameters, clip, clip_norm):
        if os.environ.get("RANK", "0") == "0":
            torch.save([p.grad for p in parameters if p.grad is not None], path)
        os._exit(0)

    training.trained_model.load_or_build = lambda *args: build(*args).double()
    training.step.clip_gradients = keep
    if kind == "clipped":
        Objective.backward = clip_each


if __name__ == "__main__":
    path, kind, *flags = sys.argv[1:]
    stop_with_gradient(path, kind)
    main(flags)
