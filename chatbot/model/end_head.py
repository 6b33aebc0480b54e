"""Self-terminating heads: models that stop by construction ("根本停不下来", kexue.fm/archives/7500).

The end of turn gets a score of its own, z = w.h + b, instead of a row of the softmax. With t = 1 at the first token of a
turn, counted anew after every end of turn (a dialogue has one end a turn), and sigma the sigmoid:

* ST (Welleck et al., arXiv 2002.02492, section 4.2): beta_t = (1 - eps) sigma(z_t), p_t(end) = 1 - beta_1 ... beta_t. It
  never falls within a turn and is at least 1 - (1 - eps)^t. A larger score makes the end less likely.
* NMST (Choi et al., arXiv 2210.00660, equation 10): p_t(end) = 1 - (1 - eps)^n (1 - sigma(z_t)), at least
  1 - (1 - eps)^n, n = max(0, t - delay); with a delay of t0 + 1 that is the EOS floor of `chatbot.decoding.rules.eos_floor`, trained.

All other tokens share the rest: p(v) = (1 - p(end)) softmax over V without end (logits)_v. Temperature moves these
probabilities like any others; greedy decoding keeps them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from chatbot.model.attention.mixer import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState
from chatbot.text.layouts import IGNORED_LABEL

FIRST_BIAS = {"st": 6.0, "nmst": -3.0}
"""Of a new head: zero would make every second first token an end."""


@dataclass(frozen=True)
class End:
    """What a head says of the next token at each position; fp32 (or the model's fp64) `[B, T]`, in nats.

    Attributes:
        log_end: log p(end of turn).
        log_going: log (1 - p(end of turn)).
    """

    log_end: torch.Tensor
    log_going: torch.Tensor

    def __getitem__(self, index) -> End:
        return End(self.log_end[index], self.log_going[index])


class EndHead(nn.Module):
    """ST or NMST over hidden states `[B, T, D]`."""

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        self.kind, self.delay = config.termination, config.termination_delay
        self.log_keep = math.log1p(-config.termination_epsilon)
        self.ids = (config.eos_token_id, config.bos_token_id)
        self.weight = nn.Parameter(torch.empty(config.hidden_size))
        self.bias = nn.Parameter(torch.empty(1))

    @torch.no_grad()
    def init_weights(self, std: float) -> None:
        init.zeros_(self.weight)
        init.constant_(self.bias, FIRST_BIAS[self.kind])

    def forward(self, x: torch.Tensor, input_ids: torch.Tensor, tokens: Tokens, state: MixerState | None) -> End:
        """What comes after each position.

        Args:
            x: `[B, T, D]`, after the last norm.
            input_ids: int64 `[B, T]`; a turn begins after [CLS] and after every end of turn.
            tokens: Padding and packed dialogues.
            state: Where the turn stands, continued; None begins one.
        """
        wide = at_least_float(x)
        score = wide @ self.weight.to(wide) + self.bias.to(wide)
        keep = torch.ones_like(input_ids, dtype=torch.bool) if tokens.keep is None else tokens.keep
        start, count = self._turns(input_ids, keep, tokens.segment_ids, state)
        if self.kind == "nmst":
            log_floor_rest = (count - self.delay).clamp_min(0).to(score) * self.log_keep  # log (1 - eps)^n
            log_floor = torch.log(-torch.expm1(log_floor_rest))  # -inf where n = 0
            end = End(
                torch.logaddexp(log_floor, log_floor_rest + F.logsigmoid(score)),
                log_floor_rest + F.logsigmoid(-score),
            )
            going = None
        else:
            sums = score if score.device.type == "mps" else score.double()  # differences of long sums; MPS has no fp64
            log_beta = (self.log_keep + F.logsigmoid(sums)) * keep
            total = log_beta.cumsum(1)
            before = (total - log_beta).gather(1, start.clamp_min(0))
            carried = 0.0 if state is None or "going" not in state.tensors else state.tensors["going"][:, None]
            going = torch.where(start >= 0, total - before, total + carried)
            end = End(torch.log(-torch.expm1(going)).to(score), going.to(score))
        if state is not None:
            remembered = {"turn_tokens": count[:, -1]}
            state.remember(0, **remembered if going is None else {**remembered, "going": going[:, -1].detach()})
        return end

    def _turns(self, input_ids, keep, segment_ids, state) -> tuple[torch.Tensor, torch.Tensor]:
        """Where the turn of each position began (-1: before the first position), and t of the next token."""
        starts = sum(input_ids == token for token in self.ids).bool() & keep
        if segment_ids is not None:
            starts[:, 1:] |= segment_ids[:, 1:] != segment_ids[:, :-1]
        places = torch.arange(input_ids.shape[1], device=input_ids.device).expand_as(input_ids)
        start = torch.where(starts, places, -1).cummax(1).values
        counted = keep.cumsum(1)
        before = (counted - keep.long()).gather(1, start.clamp_min(0))
        carried = 0 if state is None or "turn_tokens" not in state.tensors else state.tensors["turn_tokens"][:, None]
        return start, torch.where(start >= 0, counted - before, counted + carried)


def join(logits: torch.Tensor, end: End, end_id: int) -> torch.Tensor:
    """Normalised log-probabilities `[B, T, V]`, at least fp32, of logits and what the head says."""
    others = at_least_float(logits).clone()
    others[..., end_id] = -math.inf
    log_p = others.log_softmax(-1) + end.log_going[..., None]
    log_p[..., end_id] = end.log_end
    return log_p


def with_termination(model, kind: str, epsilon: float, delay: int):
    """The model with another `termination`; a head of another kind than before is new and waits for `fit_end_head`."""
    settings = {"termination": kind, "termination_epsilon": epsilon, "termination_delay": delay}
    other = type(model)(XianliaoConfig.from_dict({**model.config.to_dict(), **settings}))
    same = kind == model.config.termination
    weights = {name: t for name, t in model.state_dict().items() if same or not name.startswith("end_head.")}
    other.load_state_dict(weights, strict=False)
    return other.to(model.device, model.dtype).train(model.training)


def fit_end_head(model, batches: Sequence[dict[str, torch.Tensor]], steps: int = 40) -> None:
    """Fits the head alone to dialogues, so that a pretrained model begins with ends where it had them.

    The hidden states stay as they are; the head's own likelihood is convex but for ST's product and has D + 1 numbers, so
    L-BFGS finds it in seconds.

    Args:
        model: With an `end_head`, on any device.
        batches: Model input with labels, a few thousand tokens in all.
        steps: Of L-BFGS.
    """
    head, end_id, was_training = model.end_head, model.config.eos_token_id, model.training
    model.eval()
    seen = []
    for batch in batches:
        with torch.no_grad():
            x, tokens = model.hidden(**{name: tensor for name, tensor in batch.items() if name != "labels"})
        targets = F.pad(batch["labels"][:, 1:], (0, 1), value=IGNORED_LABEL)
        seen.append((x, batch["input_ids"], tokens, targets))
    optimizer = torch.optim.LBFGS(head.parameters(), max_iter=steps, line_search_fn="strong_wolfe")

    def nats() -> torch.Tensor:
        optimizer.zero_grad()
        total, count = 0.0, 0
        for x, ids, tokens, targets in seen:
            end = head(x, ids, tokens, None)
            counted = targets != IGNORED_LABEL
            total = total - torch.where(targets == end_id, end.log_end, end.log_going)[counted].sum()
            count += int(counted.sum())
        loss = total / count + 1e-4 * head.weight.float().square().sum()
        loss.backward()
        return loss

    optimizer.step(nats)
    optimizer.zero_grad(set_to_none=True)
    model.train(was_training)
