"""Geometry of Gaussian latents (苏剑林, kexue.fm/archives/7725): replies are ellipsoids, pulled towards the unit ball.

In coordinates in which the prior is the standard normal, m = (mu_q - mu_p) / sigma_p and s = sigma_q / sigma_p,

    KL(q || p) = sum_d 1/2 (m_d^2 + s_d^2 - log s_d^2 - 1)

is the post's formula: m^2 pulls the centre into the ball, s^2 - log s^2 - 1 keeps the ellipsoid from shrinking to a
point or growing without bound. Dims: R replies, Z size of the latent.
"""

from __future__ import annotations

import math
import random
from typing import NamedTuple

import torch

LOG_2PI = math.log(2 * math.pi)


class Normal(NamedTuple):
    """Normal distributions with diagonal covariance.

    Attributes:
        mean: `[R, Z]`.
        log_variance: `[R, Z]`, nats.
    """

    mean: torch.Tensor
    log_variance: torch.Tensor

    @property
    def deviation(self) -> torch.Tensor:
        """Standard deviations sigma `[R, Z]`."""
        return (0.5 * self.log_variance).exp()

    def at(self, noise: torch.Tensor) -> torch.Tensor:
        """Return z = mu + sigma * noise, `[R, Z]`: the reparametrisation of Kingma & Welling (2014)."""
        return self.mean + self.deviation * noise

    def log_density(self, z: torch.Tensor) -> torch.Tensor:
        """Return log N(z; mu, sigma^2) summed over the dimensions, `[..., R]` for z `[..., R, Z]`."""
        square = (z - self.mean).square() * (-self.log_variance).exp()
        return -0.5 * (square + self.log_variance + LOG_2PI).sum(-1)

    def whitened_by(self, prior: Normal) -> Normal:
        """Return the distributions in the coordinates in which `prior` is the standard normal."""
        return Normal((self.mean - prior.mean) / prior.deviation, self.log_variance - prior.log_variance)


def kl_per_dimension(q: Normal, p: Normal) -> torch.Tensor:
    """Return KL(q || p) of each reply and dimension, `[R, Z]`, nats."""
    m, log_s2 = q.whitened_by(p)
    return 0.5 * (m.square() + log_s2.exp() - log_s2 - 1)


def free_bits(kl: torch.Tensor, free_nats: float) -> torch.Tensor:
    """Return sum_d max(lambda, mean over the replies of KL_d), nats per reply (Kingma et al. 2016, eq. 15).

    The maximum is applied to the mean over the batch, so a dimension may carry much about some replies and little about
    others.

    Args:
        kl: `[R, Z]`.
        free_nats: lambda, nats per dimension.
    """
    return kl.mean(0).clamp_min(free_nats).sum()


def directions(seed: int, count: int, size: int) -> torch.Tensor:
    """Return a vector of standard normal noise for each of the first variants of a reply; the vectors are orthogonal.

    A space of `size` dimensions has only `size` orthogonal vectors, so this holds within each block of `size` vectors.
    Each vector keeps the length with which it was drawn. The first vectors do not depend on `count`. Python's generator
    draws the numbers, so they are the same on every machine.

    Args:
        seed: Seed of the reply.
        count: Number of variants.
        size: Z.

    Returns:
        fp32 `[count, Z]`.
    """
    source = random.Random(f"{seed}/variation")
    drawn: list[torch.Tensor] = []
    for number in range(count):
        vector = torch.tensor([source.gauss(0.0, 1.0) for _ in range(size)], dtype=torch.float64)
        length = vector.norm()
        for _ in range(2):  # the second pass removes what rounding left over
            for other in drawn[number - number % size :]:
                vector = vector - (vector @ other) / other.square().sum() * other
        drawn.append(vector * (length / vector.norm()))
    return torch.stack(drawn).float() if drawn else torch.zeros(0, size)
