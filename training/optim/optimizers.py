"""Optimizers: fused AdamW for everything, or Muon for the matrices of the blocks and AdamW for the rest."""

from __future__ import annotations

import torch
from torch import nn

from training.settings import TrainSettings

LEAST_SIDE = 16
"""Matrices with a shorter side, such as gates with a row a head, are left to AdamW."""


def build_optimizers(model: nn.Module, settings: TrainSettings) -> list[torch.optim.Optimizer]:
    """Weight decay goes to matrices and embeddings, not to norms, biases and rates.

    Muon's steps are scaled to the size of AdamW's (arXiv 2502.16982, eq. 4), so both take one learning rate.
    """
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    matrices = block_matrices(model) if settings.optimizer == "muon" else []
    chosen = {id(parameter) for parameter in matrices}
    rest = [parameter for parameter in trained if id(parameter) not in chosen]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": settings.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = settings.learning_rate
    optimizers: list[torch.optim.Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)]
    if matrices:
        muon = Muon(matrices, lr=rate, weight_decay=settings.weight_decay, adjust_lr_fn="match_rms_adamw")
        muon.dtype = torch.bfloat16 if settings.precision == "bf16" else torch.float32
        optimizers.append(muon)
    return optimizers


def block_matrices(model: nn.Module) -> list[nn.Parameter]:
    """Trained weights of the linear layers inside the blocks; embeddings and the output head are not among them."""
    linear = [module for block in model.blocks for module in block.modules() if isinstance(module, nn.Linear)]
    return [m.weight for m in linear if m.weight.requires_grad and min(m.weight.shape) >= LEAST_SIDE]


class Muon(torch.optim.Muon):
    """torch's Muon (kellerjordan.github.io/posts/muon), whose iteration runs in fp32 on CPUs, unless told otherwise.

    torch's runs in bfloat16 everywhere; without bfloat16 units that is four times slower than fp32, with them as much
    faster.
    """

    dtype = torch.float32
    """Of the iteration on CPUs."""

    @torch.no_grad()
    def step(self, closure=None):
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
    """U V^T of the singular value decomposition U S V^T, roughly: Newton-Schulz iteration of odd degree 5, `[M, N]`.

    Singular values end between about 0.7 and 1.2, which is near enough for an update.
    """
    a, b, c = coefficients
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.float().T if tall else matrix.float()
    x = (x / x.norm().clamp_min(eps)).to(dtype)
    for _ in range(steps):
        gram = x @ x.T
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.T if tall else x
