"""Synthesizer (Tay et al., arXiv 2005.00743; 苏剑林, kexue.fm/archives/7430): attention weights that are not compared.

    Y = softmax(B) V        B `[N, N]` per head

| kind | B |
|---|---|
| dense | row i = W2 relu(W1 x_i + b1) + b2 (eq. 2) |
| random | trained (eq. 5) |
| fixed_random | drawn once, not trained |
| fact_dense | row i = tile(A x_i) * repeat(B x_i), of a * b = N factors (eq. 7) |
| fact_random | R1 R2^T, of rank k (eq. 9) |
| mixture | sum_m a_m B_m over `synthesizer_mixture`, a = softmax (eq. 10); `dot_product` is q.k / sqrt K |

Causal use: row i is position i of its dialogue and column j position j <= i, masked before the softmax. A dialogue longer
than N (`max_position_embeddings`) has no row and is refused. The state is the values so far (and the keys, for
`dot_product`): it is bounded by N. Dims: B batch, T new tokens, S remembered and new ones, H heads, K head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init  # leaves alone what was loaded

from chatbot.model.attention.mixer import Form, Mixer, Tokens, rotary
from chatbot.model.attention.softmax import visible
from chatbot.model.config import XianliaoConfig
from chatbot.model.state import MixerState
from chatbot.text.dialogue import DialogueError

FACTOR_RANK = 8


def factors(length: int) -> tuple[int, int]:
    """a <= b with a * b = N, as near to each other as N allows."""
    a = max(a for a in range(1, math.isqrt(length) + 1) if length % a == 0)
    return a, length // a


class DenseLogits(nn.Module):
    """Row i of B from token i: `[B, T, D]` -> `[B, T, H, N]`."""

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        self.heads, width = config.num_attention_heads, config.head_dim
        self.hidden_proj = nn.Linear(config.hidden_size, self.heads * width)
        self.row_weight = nn.Parameter(torch.empty(self.heads, width, config.max_position_embeddings))
        self.row_bias = nn.Parameter(torch.empty(self.heads, config.max_position_embeddings))

    def init_weights(self, std: float) -> None:
        init.normal_(self.row_weight, std=std)
        init.zeros_(self.row_bias)

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.hidden_proj(x)).unflatten(2, (self.heads, -1))
        return torch.einsum("bthk,hkn->bthn", hidden, self.row_weight) + self.row_bias


class FactoredDenseLogits(nn.Module):
    """Row i of B as a product of two short rows. One is tiled and the other repeated: tiling both would let columns
    coincide whenever a and b have a common factor."""

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        self.heads = config.num_attention_heads
        self.a, self.b = factors(config.max_position_embeddings)
        self.hidden_proj = nn.Linear(config.hidden_size, self.heads * config.head_dim)
        self.factor_weight = nn.Parameter(torch.empty(self.heads, config.head_dim, self.a + self.b))
        self.factor_bias = nn.Parameter(torch.empty(self.heads, self.a + self.b))

    def init_weights(self, std: float) -> None:
        init.normal_(self.factor_weight, std=std)
        init.ones_(self.factor_bias)  # a product of two zeros would not learn

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        hidden = F.relu(self.hidden_proj(x)).unflatten(2, (self.heads, -1))
        both = torch.einsum("bthk,hkn->bthn", hidden, self.factor_weight) + self.factor_bias
        first, second = both.split([self.a, self.b], -1)
        return first.repeat(1, 1, 1, self.b) * second.repeat_interleave(self.a, -1)


class RandomLogits(nn.Module):
    """B itself, trained or not; the input is not looked at."""

    def __init__(self, config: XianliaoConfig, trained: bool):
        super().__init__()
        size = config.max_position_embeddings
        self.matrix = nn.Parameter(torch.empty(config.num_attention_heads, size, size), requires_grad=trained)

    def init_weights(self, std: float) -> None:
        init.normal_(self.matrix, std=1.0 if not self.matrix.requires_grad else std)

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.matrix[:, positions].permute(1, 2, 0, 3)


class FactoredRandomLogits(nn.Module):
    """B = R1 R2^T of rank `FACTOR_RANK`."""

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        shape = (config.num_attention_heads, config.max_position_embeddings, FACTOR_RANK)
        self.left, self.right = nn.Parameter(torch.empty(shape)), nn.Parameter(torch.empty(shape))

    def init_weights(self, std: float) -> None:
        for factor in (self.left, self.right):
            init.normal_(factor, std=(std / FACTOR_RANK**0.5) ** 0.5)

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return torch.einsum("hbtr,hnr->bthn", self.left[:, positions], self.right)


LOGITS = {
    "dense": DenseLogits,
    "random": lambda config: RandomLogits(config, trained=True),
    "fixed_random": lambda config: RandomLogits(config, trained=False),
    "fact_dense": FactoredDenseLogits,
    "fact_random": FactoredRandomLogits,
}


class Synthesizer(Mixer):
    """The mixer of the module docstring.

    Args:
        config: Sizes; N is `max_position_embeddings`.
        kind: A row of the table.
    """

    needs_positions = True

    def __init__(self, config: XianliaoConfig, kind: str):
        parts = config.synthesizer_mixture if kind == "mixture" else [kind]
        super().__init__(config, projects_queries="dot_product" in parts)
        self.length, self.parts, self.theta = config.max_position_embeddings, parts, config.rope_theta
        self.rotates = config.positions == "rope"
        self.logits = nn.ModuleDict({part: LOGITS[part](config) for part in parts if part != "dot_product"})
        self.mixture = nn.Parameter(torch.empty(len(parts), config.num_attention_heads)) if kind == "mixture" else None

    def init_weights(self, std: float) -> None:
        if self.mixture is not None:
            init.zeros_(self.mixture)

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        q, k, v = self.project(x, tokens, state)
        if self.key_dim and self.rotates:
            q, k = (rotary(part, tokens.positions, self.theta) for part in (q, k))
        past = {} if state is None else state.tensors
        values, keys, columns, keep, segments = self._with_past(v, k, tokens, past)
        if int(columns.max()) >= self.length:
            raise DialogueError(
                f"This Synthesizer has {self.length} positions and the dialogue {int(columns.max()) + 1} tokens; give a"
                " shorter one, or train with a larger max_position_embeddings."
            )
        length, total = x.shape[1], values.shape[1]
        places = torch.arange(total, device=x.device)
        seen = visible(tokens.segment_ids, segments, keep, places[total - length :, None] >= places)
        logits = self._mixed_rows(x, q, keys, tokens.positions, columns)  # [B, T, H, S]
        mix = naive if form == "naive" else parallel
        output = mix(logits, values, seen)
        if state is not None:
            state.remember(
                length, values=values, columns=columns, keep=keep, **({"keys": keys} if self.key_dim else {})
            )
        return self.finish(x, output)

    def _with_past(self, v, k, tokens: Tokens, past: dict[str, torch.Tensor]):
        """Values, keys, columns of B, keep and segments `[B, S, ...]`, of what is remembered and of what is new."""
        keep = torch.ones_like(v[:, :, 0, 0], dtype=torch.bool) if tokens.keep is None else tokens.keep
        columns, segments = tokens.positions, tokens.segment_ids
        if "values" not in past:
            return v, k, columns, keep, segments
        if segments is not None:
            segments = torch.cat([segments[:, :1].expand(-1, past["values"].shape[1]), segments], 1)
        values, columns = torch.cat([past["values"], v], 1), torch.cat([past["columns"], columns], 1)
        keys = torch.cat([past["keys"], k], 1) if self.key_dim else k
        return values, keys, columns, torch.cat([past["keep"], keep], 1), segments

    def _mixed_rows(self, x, q, keys, rows: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
        """B's rows of the new tokens at the columns of all tokens: `[B, T, H, S]`."""
        taken = columns[:, None, None].expand(-1, x.shape[1], self.heads, -1)
        parts = []
        for part in self.parts:
            if part == "dot_product":
                parts.append(torch.einsum("bthk,bshk->bths", q, keys) / math.sqrt(self.key_dim))
            else:
                parts.append(self.logits[part].rows(x, rows).expand(len(x), -1, -1, -1).gather(3, taken))
        if self.mixture is None:
            return parts[0]
        shares = self.mixture.softmax(0)
        return sum(share[:, None] * part for share, part in zip(shares, parts, strict=True))


def naive(logits: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """The definition, one position at a time: logits `[B, T, H, S]`, values `[B, S, H, V]`, seen `[B or 1, T, S]`."""
    offset = values.shape[1] - logits.shape[1]
    outputs = []
    for i in range(logits.shape[1]):
        past = slice(0, offset + i + 1)
        mask = seen[:, i, None, past]
        weights = logits[:, i, :, past].float().masked_fill(~mask, -math.inf).softmax(-1).masked_fill(~mask, 0)
        outputs.append(torch.einsum("bhs,bshv->bhv", weights.to(values.dtype), values[:, past]))
    return torch.stack(outputs, 1)


def parallel(logits: torch.Tensor, values: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """`naive` at once."""
    seen = seen[:, :, None]
    weights = logits.float().masked_fill(~seen, -1e30).softmax(-1)
    return torch.einsum("bths,bshv->bthv", weights.to(values.dtype), values)
