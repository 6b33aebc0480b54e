"""Layers of the latent: prior, recognition, codes, and the projections into the blocks.

Dims: R replies, D hidden size, Z size of the latent, K codes, N blocks.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn
from transformers import initialization as init

from chatbot.model.config import XianliaoConfig
from chatbot.model.latent.gaussian import Normal, directions

MLP_WIDTH = 128
"""Width of the hidden layer of prior and recognition."""

MAX_LOG_VARIANCE = 8.0
"""Bound of log sigma^2 in both directions, so that no ratio of variances overflows."""


class ZeroProjection(nn.Linear):
    """Linear layer that is initialised with zeros."""


class Codebook(nn.Module):
    """K vectors `[K, Z]` with standard normal initial values: the values of a discrete latent."""

    def __init__(self, codes: int, size: int):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(codes, size))

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        init.normal_(self.weight, std=1.0)


class ReplyLatent(nn.Module):
    """The latent variable of a reply r to a context c.

        prior         p(z|c) = N(MLP(h_c)), or softmax(MLP(h_c)) over the codes; h_c: hidden state at the message's end
        recognition   q(z|c,r) = N(MLP([mean of h over r; h at the end of r]))
        bag of words  p(w|z,c) = softmax(E B [z; h_c]), E the output embedding (Zhao et al. 2017, eq. 5)
        block n       x += W_n z at the message's end and at the tokens of the reply

    Hidden states h are those after the last norm, computed without z and without gradient.

    Args:
        config: `latent`, `latent_size`, `latent_codes`, `hidden_size` and `num_hidden_layers`.
    """

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        width, self.size, self.is_discrete = config.hidden_size, config.latent_size, config.latent == "discrete"
        outputs = config.latent_codes if self.is_discrete else 2 * self.size
        self.prior_mlp = _mlp(width, outputs)
        self.recognition_mlp = None if self.is_discrete else _mlp(2 * width, outputs)
        self.codes = Codebook(config.latent_codes, self.size) if self.is_discrete else None
        self.skips = nn.ModuleList(
            ZeroProjection(self.size, width, bias=False) for _ in range(config.num_hidden_layers)
        )
        self.bag = nn.Linear(self.size + width, width, bias=False)

    def prior(self, context: torch.Tensor) -> Normal:
        """Return p(z|c) for hidden states `[R, D]` at the ends of the messages."""
        return _normal(self.prior_mlp(context))

    def recognition(self, mean: torch.Tensor, end: torch.Tensor) -> Normal:
        """Return q(z|c,r) for means `[R, D]` over the replies and hidden states `[R, D]` at their ends."""
        assert self.recognition_mlp is not None
        return _normal(self.recognition_mlp(torch.cat([mean, end], -1)))

    def log_code_prior(self, context: torch.Tensor) -> torch.Tensor:
        """Return log p(k|c) of every code, `[R, K]`, for hidden states `[R, D]` at the ends of the messages."""
        return self.prior_mlp(context).log_softmax(-1)

    def bag_states(self, z: torch.Tensor, context: torch.Tensor) -> torch.Tensor:
        """Return the hidden states `[R, D]` whose logits predict the words of the replies in any order."""
        return self.bag(torch.cat([z, context], -1))

    def at(self, context: torch.Tensor, point: Sequence[float]) -> torch.Tensor:
        """Return z = mu_p + sigma_p * point, the z at a point in coordinates in which the prior is the standard normal.

        Args:
            context: Hidden state `[D]` at the message's end.
            point: Z coordinates; the latent is Gaussian.

        Returns:
            `[Z]`, fp32.
        """
        context = context[None].to(self.bag.weight.dtype)
        noise = torch.tensor([point], dtype=context.dtype, device=context.device)
        return self.prior(context).at(noise)[0].float()

    def variant(self, context: torch.Tensor, seed: int, number: int, spread: float) -> torch.Tensor:
        """Return the z of a variant of a reply, a function of context, seed, number and spread.

        Gaussian: z_k = mu_p + spread sigma_p * e_k, where e_k is orthogonal to the e of earlier variants. Discrete: the
        variants use the codes in descending order of log p(k|c) + spread g_k with Gumbel noise g_k; with spread 1 this
        is sampling from the prior without replacement. After the last code, the order starts again.

        Args:
            context: Hidden state `[D]` at the message's end.
            seed: Seed of the reply.
            number: Number k of the variant, from 1.
            spread: Factor of the noise; 0 gives the mean, or the most likely codes.

        Returns:
            `[Z]`, fp32.
        """
        context = context[None].to(self.bag.weight.dtype)
        if self.codes is None:
            noise = spread * directions(seed, number, self.size)[-1:]
            return self.prior(context).at(noise.to(context))[0].float()
        noise = directions(seed, 1, len(self.codes.weight))[0]
        uniform = (0.5 * (1 + torch.erf(noise / 2**0.5))).clamp(1e-6, 1 - 1e-6)
        gumbel = -(-uniform.log()).log()
        order = (self.log_code_prior(context)[0].cpu() + spread * gumbel).argsort(descending=True, stable=True)
        return self.codes.weight[order[(number - 1) % len(order)]].float()


def _mlp(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(inputs, MLP_WIDTH), nn.GELU(), nn.Linear(MLP_WIDTH, outputs))


def _normal(parameters: torch.Tensor) -> Normal:
    mean, log_variance = parameters.chunk(2, -1)
    return Normal(mean, log_variance.clamp(-MAX_LOG_VARIANCE, MAX_LOG_VARIANCE))
