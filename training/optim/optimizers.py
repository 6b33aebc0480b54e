"""Optimizers: fused AdamW for all parameters, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from training.latent.groups import latent_groups
from training.settings import TrainSettings

MIN_SIDE = 16
"""Minimum length of both sides of a matrix for Muon; AdamW gets the others, such as gates with one row per head."""

DECAYED = 0
"""Index of the parameter group with weight decay; AdamW's second group has none."""


def build_optimizers(model: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Return the optimizers of a model's trained parameters.

    Muon's steps are scaled to the size of AdamW's (arXiv 2502.16982, eq. 4), so both use one learning rate.
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    matrices = block_matrices(model) if settings.optimizer == "muon" else []
    with_muon = {id(parameter) for parameter in matrices}
    rest = {name: parameter for name, parameter in trained.items() if id(parameter) not in with_muon}
    groups: list[dict[str, Any]] = [
        {"params": [p for name, p in rest.items() if is_decayed(name, p)], "weight_decay": settings.weight_decay},
        {"params": [p for name, p in rest.items() if not is_decayed(name, p)], "weight_decay": 0.0},
    ]
    if settings.latent != "keep":
        groups = latent_groups(model, is_decayed, settings.weight_decay)
    rate = settings.learning_rate
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)]
    if matrices:
        muon = Muon(matrices, lr=rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
        muon.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        optimizers.append(muon)
    return optimizers


def is_decayed(name: str, parameter: torch.Tensor) -> bool:
    """Return whether a parameter has weight decay: matrices and embeddings have, by name and shape.

    Biases, norms and rates have none, and neither have the taps of a convolution, `row_bias`, `factor_bias` and
    `mixture` of the Synthesizers, which are not matrices although they have two dimensions.
    """
    *modules, last = name.split(".")
    return parameter.ndim >= 2 and not last.endswith("bias") and last != "mixture" and "convolution" not in modules


def set_rates(optimizers: Iterable[torch.optim.Optimizer], learning_rate: float, weight_decay: float) -> None:
    """Set the learning rate of all parameter groups and the weight decay of those that have one."""
    for optimizer in optimizers:
        for number, group in enumerate(optimizer.param_groups):
            group["lr"] = learning_rate * group.get("rate_share", 1.0)
            if number == DECAYED:
                group["weight_decay"] = weight_decay


def block_matrices(model: nn.Module) -> list[torch.Tensor]:
    """Return the trained weights of the linear layers inside the blocks, without embeddings and output head."""
    weights = [module.weight for module in model.get_submodule("blocks").modules() if isinstance(module, nn.Linear)]
    return [weight for weight in weights if weight.requires_grad and min(weight.shape) >= MIN_SIDE]


class Muon(torch.optim.Muon):
    """torch's Muon (kellerjordan.github.io/posts/muon), with an iteration of selectable precision on CPUs.

    torch's iteration runs in bfloat16 everywhere, which is four times slower than fp32 on CPUs without bfloat16
    instructions and four times faster on CPUs that have these instructions.

    Muon treats the fused projection of queries, keys and values, `[3 H K, D]`, as one matrix; separate projections,
    as in the literature, were not tried.
    """

    dtype = torch.float32
    """dtype of the iteration on CPUs."""

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]  # as torch's
        """Take a step, as torch's Muon does."""
        if any(parameter.device.type != "cpu" for group in self.param_groups for parameter in group["params"]):
            return super().step(closure)
        loss = None if closure is None else torch.enable_grad()(closure)()
        for group in self.param_groups:
            rate, momentum = group["lr"], group["momentum"]
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                if "momentum_buffer" not in state:
                    state["momentum_buffer"] = torch.zeros_like(parameter.grad)
                buffer = state["momentum_buffer"].lerp_(parameter.grad, 1 - momentum)
                update = parameter.grad.lerp(buffer, momentum) if group["nesterov"] else buffer
                update = orthogonalize(update, group["ns_coefficients"], group["ns_steps"], group["eps"], self.dtype)
                parameter.mul_(1 - rate * group["weight_decay"])
                parameter.add_(update, alpha=-rate * 0.2 * max(parameter.shape) ** 0.5)
        return loss


def orthogonalize(
    matrix: torch.Tensor,
    coefficients: tuple[float, float, float],
    steps: int,
    eps: float,
    dtype: torch.dtype = torch.float32,
) -> torch.Tensor:
    """Approximate U V^T of the singular value decomposition U S V^T by a Newton-Schulz iteration of degree 5.

    X <- a X + b (X X^T) X + c (X X^T)^2 X, from X = matrix / ||matrix||. Singular values that are above about 1 % of
    the norm end between about 0.7 and 1.2, which is near enough for an update. Smaller ones may end lower: of 64 values
    from 1 to 1/1,000 at even ratios, 30 % end below 0.7, the smallest at 0.21 (tests/training/test_optimizers.py).

    Args:
        matrix: `[M, N]`.
        coefficients: a, b, c.
        steps: Number of iterations.
        eps: Lower bound of the norm that the matrix is divided by.
        dtype: dtype of the iteration.

    Returns:
        `[M, N]`, in `dtype`.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if tall else matrix.float()
    x = (x / x.norm().clamp_min(eps)).to(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
