"""Self-terminating heads: a separate head predicts the end of turn ("根本停不下来", kexue.fm/archives/7500).

The end of turn gets its own score z = w.h + b instead of a row of the softmax. t counts the tokens of a turn from 1 and
restarts after every end of turn, since a dialogue has one end per turn. With sigma the sigmoid:

* ST (Welleck et al., arXiv 2002.02492, section 4.2): beta_t = (1 - eps) sigma(z_t), p_t(end) = 1 - beta_1 ... beta_t.
  p_t(end) never falls within a turn and is at least 1 - (1 - eps)^t. Note the sign: a larger score makes the end less
  likely.
* NMST (Choi et al., arXiv 2210.00660, equation 10): p_t(end) = 1 - (1 - eps)^n (1 - sigma(z_t)), at least
  1 - (1 - eps)^n, with n = max(0, t - delay). With a delay of t0 + 1 the lower bound is that of the EOS floor in
  `chatbot.decoding.rules.eos_floor`.

The other tokens share the remaining probability: p(v) = (1 - p(end)) softmax(logits)_v, the softmax over V without the
end of turn. Temperature applies to these probabilities as to any others; greedy decoding does not change them.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from chatbot.model.attention.tokens import Tokens, dialogue_starts
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState

INITIAL_BIAS = {"st": 6.0, "nmst": -3.0}
"""Bias of a new head. With zero, every second turn would end at its first token."""


@dataclass(frozen=True)
class EndLogProbs:
    """Log-probabilities that the next token is, or is not, the end of turn; `[B, T]`, at least fp32, in nats.

    Attributes:
        log_end: log p(end of turn).
        log_continue: log (1 - p(end of turn)).
    """

    log_end: torch.Tensor
    log_continue: torch.Tensor

    def __getitem__(self, index) -> EndLogProbs:
        return EndLogProbs(self.log_end[index], self.log_continue[index])


class EndHead(nn.Module):
    """ST or NMST head over hidden states `[B, T, D]`.

    Args:
        config: `termination`, `termination_epsilon`, `termination_delay`, and the ids of [CLS] and the end of turn.
    """

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        self.kind, self.delay = config.termination, config.termination_delay
        self.log_keep = math.log1p(-config.termination_epsilon)  # log (1 - eps)
        self.ids = (config.eos_token_id, config.bos_token_id)
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        init.zeros_(self.weight)
        init.constant_(self.bias, INITIAL_BIAS[self.kind])

    def forward(
        self, x: torch.Tensor, input_ids: torch.Tensor, tokens: Tokens, state: MixerState | None
    ) -> EndLogProbs:
        """Return the log-probabilities of the end of turn after each position.

        Args:
            x: `[B, T, D]`, after the last norm.
            input_ids: int64 `[B, T]`; a turn begins after [CLS] and after every end of turn.
            tokens: Padding and packed dialogues.
            state: State of the current turn, updated in place; None begins a turn.
        """
        wide = at_least_float(x)
        score = wide @ self.weight.to(wide) + self.bias.to(wide)
        keep = torch.ones_like(input_ids, dtype=torch.bool) if tokens.keep is None else tokens.keep
        start, count = self._turns(input_ids, keep, tokens.segment_ids, state)
        if state is not None:
            state.remember(0, turn_tokens=count[:, -1])
        if self.kind == "nmst":
            log_rest = (count - self.delay).clamp_min(0).to(score) * self.log_keep  # log (1 - eps)^n
            log_floor = torch.log(-torch.expm1(log_rest))  # -inf where n = 0
            log_end = torch.logaddexp(log_floor, log_rest + F.logsigmoid(score))
            return EndLogProbs(log_end, log_rest + F.logsigmoid(-score))
        # ST. Differences of long sums need fp64, which MPS lacks.
        sums = score if score.device.type == "mps" else score.double()
        log_beta = (self.log_keep + F.logsigmoid(sums)) * keep
        total = log_beta.cumsum(1)
        before = (total - log_beta).gather(1, start.clamp_min(0))
        carried: torch.Tensor | float = 0.0
        if state is not None and "log_continue" in state.tensors:
            carried = state.tensors["log_continue"][:, None]
        log_continue = torch.where(start >= 0, total - before, total + carried)
        if state is not None:
            state.remember(0, log_continue=log_continue[:, -1].detach())
        return EndLogProbs(torch.log(-torch.expm1(log_continue)).to(score), log_continue.to(score))

    def _turns(
        self,
        input_ids: torch.Tensor,
        keep: torch.Tensor,
        segment_ids: torch.Tensor | None,
        state: MixerState | None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return where the turn of each position begins, and the count t of the next token.

        Returns:
            The position at which the turn of each token begins, -1 if it began before the first position; and t of the
            token that follows each position. Both int64 `[B, T]`.
        """
        starts = torch.zeros_like(keep)
        for token in self.ids:
            starts = starts | (input_ids == token)
        starts = starts & keep
        if segment_ids is not None:
            starts[:, 1:] |= dialogue_starts(segment_ids)[:, 1:]
        index = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        start = torch.where(starts, index, -1).cummax(1).values
        counted = keep.cumsum(1)
        before = (counted - keep.long()).gather(1, start.clamp_min(0))
        carried: torch.Tensor | int = 0
        if state is not None and "turn_tokens" in state.tensors:
            carried = state.tensors["turn_tokens"][:, None]
        return start, torch.where(start >= 0, counted - before, counted + carried)


def combine(logits: torch.Tensor, end: EndLogProbs, end_id: int) -> torch.Tensor:
    """Combine the logits of the other tokens with an end head.

    Args:
        logits: `[B, T, V]`; the value at `end_id` is ignored.
        end: Output of the end head at the same positions.
        end_id: Id of the end of turn.

    Returns:
        Normalised log-probabilities `[B, T, V]`, at least fp32.
    """
    others = at_least_float(logits).clone()
    others[..., end_id] = -math.inf
    log_p = others.log_softmax(-1) + end.log_continue[..., None]
    log_p[..., end_id] = end.log_end
    return log_p
