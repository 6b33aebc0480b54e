"""Synthesizer (Tay et al., arXiv 2005.00743; 苏剑林, kexue.fm/archives/7430): attention weights without q.k.

    Y = softmax(B) V        B `[N, N]` per head

| kind | B |
|---|---|
| dense | row i = W2 relu(W1 x_i + b1) + b2 (eq. 2) |
| random | trained (eq. 5) |
| fixed_random | random, not trained |
| fact_dense | row i = tile(A x_i) * repeat(B x_i), of a * b = N factors (eq. 7) |
| fact_random | R1 R2^T, of rank k (eq. 9) |
| mixture | sum_m a_m B_m over `synthesizer_mixture`, a = softmax (eq. 10); `dot_product` is q.k / sqrt K |

Causal form: row i is position i of its dialogue and column j position j <= i, masked before the softmax. A dialogue
longer than N (`max_position_embeddings`) raises an error. The state holds the values so far (and the keys, for
`dot_product`), at most N of them. Dims: B batch, T new tokens, S remembered and new tokens, H heads, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init  # does not overwrite loaded weights

from chatbot.model.attention.mixer import Form, Mixer, rotary
from chatbot.model.attention.tokens import Tokens, visible_keys
from chatbot.model.config import XianliaoConfig
from chatbot.model.precision import at_least_float
from chatbot.model.state import MixerState
from chatbot.text.dialogue import DialogueError

FACTOR_RANK = 8


def factors(length: int) -> tuple[int, int]:
    """Return the factors a <= b of N = a * b that are closest to each other."""
    a = max(a for a in range(1, math.isqrt(length) + 1) if length % a == 0)
    return a, length // a


class RowLogits(nn.Module):
    """Base class: computes rows of the matrix B."""

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        """Return the rows of B for tokens at these positions.

        Args:
            x: `[B, T, D]`.
            positions: int64 `[B, T]`.

        Returns:
            `[B, T, H, N]`.
        """
        raise NotImplementedError


class DenseLogits(RowLogits):
    """Row i of B as a small network of token i."""

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


class FactoredDenseLogits(RowLogits):
    """Row i of B as a product of two short rows of a and b entries: column n is first[n mod a] * second[n // a].

    The first is tiled and the second repeated. Tiling both would make columns equal if a and b have a common factor.
    """

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


class RandomLogits(RowLogits):
    """B as a parameter, trained or not; it does not depend on the tokens."""

    def __init__(self, config: XianliaoConfig, trained: bool):
        super().__init__()
        size = config.max_position_embeddings
        self.matrix = nn.Parameter(torch.empty(config.num_attention_heads, size, size), requires_grad=trained)

    def init_weights(self, std: float) -> None:
        init.normal_(self.matrix, std=1.0 if not self.matrix.requires_grad else std)

    def rows(self, x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        return self.matrix[:, positions].permute(1, 2, 0, 3)


class FactoredRandomLogits(RowLogits):
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


LOGITS: dict[str, Callable[[XianliaoConfig], RowLogits]] = {
    "dense": DenseLogits,
    "random": lambda config: RandomLogits(config, trained=True),
    "fixed_random": lambda config: RandomLogits(config, trained=False),
    "fact_dense": FactoredDenseLogits,
    "fact_random": FactoredRandomLogits,
}
"""Kinds of B by name, without `mixture`."""


class _Values(NamedTuple):
    """Remembered and new tokens of a batch.

    Attributes:
        values, keys: `[B, S, H, K]`; keys only for `dot_product`.
        columns: int64 `[B, S]`, the column of B for each token.
        keep: bool `[B, S]`, False at padding.
        segments: int `[B, S]`, or None.
    """

    values: torch.Tensor
    keys: torch.Tensor
    columns: torch.Tensor
    keep: torch.Tensor
    segments: torch.Tensor | None


class Synthesizer(Mixer):
    """Mixer with the attention weights softmax(B).

    Args:
        config: Sizes; N is `max_position_embeddings`.
        kind: A row of the table in the module docstring.
    """

    needs_positions = True
    growing = ("values", "columns", "keys")

    def __init__(self, config: XianliaoConfig, kind: str):
        assert config.synthesizer_mixture is not None  # XianliaoConfig.__post_init__ fills it in
        parts = config.synthesizer_mixture if kind == "mixture" else [kind]
        super().__init__(config, projects_queries="dot_product" in parts)
        self.length, self.parts, self.theta = config.max_position_embeddings, parts, config.rope_theta
        self.rotates = config.positions == "rope"
        self.logits = nn.ModuleDict({part: LOGITS[part](config) for part in parts if part != "dot_product"})
        self.mixture = nn.Parameter(torch.empty(len(parts), config.num_attention_heads)) if kind == "mixture" else None

    def init_weights(self, std: float) -> None:
        if self.mixture is not None:
            init.zeros_(self.mixture)

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        """Mix the tokens; see `Mixer.forward`.

        Raises:
            DialogueError: A dialogue is longer than N.
        """
        q, k, v = self.project(x, tokens, state)
        if self.key_dim and self.rotates:
            q, k = (rotary(part, tokens.known_positions, self.theta) for part in (q, k))
        known = self._with_past(v, k, tokens, {} if state is None else state.tensors)
        last = int(known.columns.max())
        if last >= self.length:
            raise DialogueError(
                f"The dialogue has {last + 1} tokens, but this Synthesizer has only {self.length} positions. Shorten"
                " the dialogue, or train with a larger max_position_embeddings."
            )
        length, total = x.shape[1], known.values.shape[1]
        index = torch.arange(total, device=x.device)
        causal = index[total - length :, None] >= index
        visible = visible_keys(tokens.segment_ids, known.segments, known.keep, causal)
        logits = self._mixed_rows(x, q, known.keys, tokens.known_positions, known.columns)  # [B, T, H, S]
        mix = naive if form == "naive" else parallel
        output = mix(logits, known.values, visible)
        if state is not None:
            tensors = {"values": known.values, "columns": known.columns, "keep": known.keep}
            if self.key_dim:
                tensors["keys"] = known.keys
            state.remember(length, **tensors)
        return self.finish(x, output)

    def _with_past(self, v: torch.Tensor, k: torch.Tensor, tokens: Tokens, past: dict[str, torch.Tensor]) -> _Values:
        """Join the remembered tokens and the new ones."""
        keep = torch.ones_like(v[:, :, 0, 0], dtype=torch.bool) if tokens.keep is None else tokens.keep
        columns, segments = tokens.known_positions, tokens.segment_ids
        if "values" not in past:
            return _Values(v, k, columns, keep, segments)
        if segments is not None:  # the remembered tokens belong to the dialogue of the first token
            segments = torch.cat([segments[:, :1].expand(-1, past["values"].shape[1]), segments], 1)
        values, columns = torch.cat([past["values"], v], 1), torch.cat([past["columns"], columns], 1)
        keys = torch.cat([past["keys"], k], 1) if self.key_dim else k
        return _Values(values, keys, columns, torch.cat([past["keep"], keep], 1), segments)

    def _mixed_rows(
        self, x: torch.Tensor, q: torch.Tensor, keys: torch.Tensor, positions: torch.Tensor, columns: torch.Tensor
    ) -> torch.Tensor:
        """Return the rows of B of the new tokens at the columns of all tokens, `[B, T, H, S]`."""
        index = columns[:, None, None].expand(-1, x.shape[1], self.heads, -1)
        parts = []
        for name in self.parts:
            if name == "dot_product":
                parts.append(torch.einsum("bthk,bshk->bths", q, keys) / math.sqrt(self.key_dim))
            else:
                logits = self.logits[name]
                assert isinstance(logits, RowLogits)
                parts.append(logits.rows(x, positions).expand(len(x), -1, -1, -1).gather(3, index))
        if self.mixture is None:
            return parts[0]
        shares = self.mixture.softmax(0)  # [parts, H]
        return torch.stack([share[:, None] * part for share, part in zip(shares, parts, strict=True)]).sum(0)


def naive(logits: torch.Tensor, values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Compute the definition, one position at a time.

    Args:
        logits: `[B, T, H, S]`.
        values: `[B, S, H, V]`.
        visible: bool `[B or 1, T, S]`.

    Returns:
        `[B, T, H, V]`; zero where no token is visible.
    """
    offset = values.shape[1] - logits.shape[1]
    outputs = []
    for i in range(logits.shape[1]):
        past = slice(0, offset + i + 1)
        mask = visible[:, i, None, past]
        scores = at_least_float(logits[:, i, :, past]).masked_fill(~mask, -math.inf)
        weights = scores.softmax(-1).masked_fill(~mask, 0)
        outputs.append(torch.einsum("bhs,bshv->bhv", weights.to(values.dtype), values[:, past]))
    return torch.stack(outputs, 1)


def parallel(logits: torch.Tensor, values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Compute `naive` for all positions at once."""
    weights = at_least_float(logits).masked_fill(~visible[:, :, None], -1e30).softmax(-1)
    return torch.einsum("bths,bshv->bthv", weights.to(values.dtype), values)
