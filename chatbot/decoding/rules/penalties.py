"""Penalties on tokens of the reply so far, and biases of tokens: OpenAI's presence, frequency and logit bias.

    logit(v) -= presence 1[c(v) > 0] + frequency c(v) - bias(v),        c(v): occurrences of v in the reply so far

These rules run after the rules that forbid tokens, so a forbidden token keeps -inf. They run before temperature, EOS
floor and truncation. EOS is never part of a reply, so only a bias can change it. The floor ensures its minimum
probability of EOS for any logits, so the bound on the reply length holds for every value.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatbot.decoding.settings import ReplySettings


@dataclass(frozen=True)
class Penalties:
    """Penalties and biases, in nats.

    Attributes:
        presence: Nats that the logit of every token in the reply loses.
        frequency: Nats that a token's logit loses per occurrence of the token in the reply.
        bias: Pairs of a token id and the nats that are added to its logit.
    """

    presence: float
    frequency: float
    bias: tuple[tuple[int, float], ...] = ()

    def apply(self, logits: torch.Tensor, replies: Sequence[Sequence[int]]) -> None:
        """Change the logits `[B, V]` of the next token of every reply, in place."""
        if self.bias:
            tokens, gains = zip(*self.bias, strict=True)
            index = torch.tensor(tokens, device=logits.device)
            logits[:, index] += torch.tensor(gains, dtype=logits.dtype, device=logits.device)
        if not (self.presence or self.frequency):
            return
        for row, reply in enumerate(replies):
            if times := Counter(reply):
                losses = [self.presence + self.frequency * count for count in times.values()]
                index = torch.tensor(list(times), device=logits.device)
                logits[row, index] -= torch.tensor(losses, dtype=logits.dtype, device=logits.device)


def penalties(settings: ReplySettings) -> Penalties | None:
    """Return the penalties and biases that the settings switch on, or None."""
    if not (settings.presence_penalty or settings.frequency_penalty or settings.logit_bias):
        return None
    return Penalties(settings.presence_penalty, settings.frequency_penalty, settings.logit_bias)
