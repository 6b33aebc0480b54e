"""Delayed EOS floor: a lower bound on the probability of EOS, so that every reply ends.

A decoder that can leave EOS out of its candidates, or a model that never wants it, may run for ever ("根本停不下来",
kexue.fm/archives/7500; Welleck et al., arXiv 2002.02492). After t reply tokens, the floor gives EOS at least the mass

    f(t) = 1 - (1 - eps)^max(0, t - t0),        eps = 1 - 2^(-1/delta)

that is log p'(v) = log p(v) + max(0, t - t0) log(1 - eps) for v != EOS. It is the bound of NMST (Choi et al., arXiv
2210.00660, eq. 10) delayed to t0, the 99th percentile of reply length, so it costs nothing before t0. Greedy and beam
search emit at most t0 + delta + 1 tokens before EOS: after t0 + delta tokens f is 1/2, so EOS is at least as likely as
any other token, and one more token is possible only if the model gives it probability 1 (up to rounding), so that both
have 1/2, and the tie is decided against EOS. For sampling P(length > t0 + m) <= (1 - eps)^(m(m+1)/2), and at t0 + 2 delta
a hard limit forces EOS. For delta = 1 this limit is t0 + delta + 1, so a reply of that length reports `limit`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch

StopReason = Literal["eos", "floor", "limit", "stopped", "safety"]
"""Why a reply ended. `eos`: the model ended it. `floor`: the floor ended it; without the floor, the same random draw
would have given another token; in beam search, which draws nothing, EOS would not have been among the `beams` likeliest
tokens after its hypothesis. `limit`: EOS was forced at the length limit. `stopped`: the user stopped it. `safety`: it is
a fixed text (`chatbot.safety`), not a reply of the model."""


@dataclass(frozen=True)
class EosFloor:
    """The two parameters of the floor.

    Attributes:
        start_tokens: t0, the number of reply tokens after which the floor begins.
        delta_tokens: delta, number of tokens after t0 until EOS has half of the mass.
    """

    start_tokens: int
    delta_tokens: int

    @property
    def log_keep(self) -> float:
        """log(1 - eps), in nats per token beyond t0."""
        return -math.log(2) / self.delta_tokens

    @property
    def limit_tokens(self) -> int:
        """t0 + 2 delta: maximum number of tokens of a reply before EOS is forced."""
        return self.start_tokens + 2 * self.delta_tokens

    def log_rest(self, emitted: torch.Tensor) -> torch.Tensor:
        """Return log(1 - f(t)) for `emitted` reply tokens; 0 up to t0."""
        return (emitted - self.start_tokens).clamp_min(0) * self.log_keep

    def mass(self, emitted: torch.Tensor) -> torch.Tensor:
        """Return f(t) in fp64, the least probability of EOS after `emitted` reply tokens."""
        return -torch.expm1(self.log_rest(emitted).double())

    def apply(self, log_probs: torch.Tensor, emitted: torch.Tensor | int, eos_id: int) -> torch.Tensor:
        """Return the log-probabilities with EOS raised to the floor.

        Args:
            log_probs: Normalised log-probabilities `[B, V]`, after temperature, before top-k and top-p.
            emitted: Number of reply tokens so far, int64 `[B]` or one number for all rows.
            eos_id: Id of the end of turn.

        Returns:
            Normalised log-probabilities `[B, V]`.
        """
        emitted = torch.as_tensor(emitted, device=log_probs.device).expand(log_probs.shape[0])
        log_rest = self.log_rest(emitted)  # [B]
        floored = log_probs + log_rest[:, None]
        # p'(eos) = 1 - (1 - p(eos)) (1 - f) = p(eos) (1 - f) + f
        floor = torch.log(-torch.expm1(log_rest))  # log f(t); -inf before t0
        floored[:, eos_id] = torch.where(
            log_rest < 0, torch.logaddexp(log_probs[:, eos_id] + log_rest, floor), log_probs[:, eos_id]
        )
        return floored
