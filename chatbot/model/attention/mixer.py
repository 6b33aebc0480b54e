"""Base class of the mixers: projections in and out and an optional output gate; also rotary positions."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from chatbot.model.attention.convolution import ShortConvolution
from chatbot.model.attention.tokens import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.state import MixerState

Form = Literal["auto", "naive"]
"""`auto`: the step if there is one token and a state, else the parallel or chunked form. `naive`: the definition."""


class ResidualProjection(nn.Linear):
    """Linear layer whose output is added to the residual stream; the model gives it smaller initial weights."""


class Mixer(nn.Module):
    """Projections in and out around an operation that mixes over time; subclasses implement `forward`.

    Args:
        config: Sizes.
        key_dim: Width K of query and key of a head; `None` means `config.head_dim`. Values have `config.head_dim`.
        projects_queries: False projects only values, without queries and keys.
    """

    needs_positions = False
    growing: tuple[str, ...] = ()  # names of the tensors of the state that have one entry per token

    def __init__(self, config: XianliaoConfig, key_dim: int | None = None, projects_queries: bool = True):
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.key_dim = (key_dim or config.head_dim) if projects_queries else 0
        inner = self.heads * self.head_dim
        width = self.heads * (2 * self.key_dim + self.head_dim)
        self.qkv_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.convolution = ShortConvolution(width, config.short_conv) if config.short_conv else None
        self.o_proj = ResidualProjection(inner, config.hidden_size, bias=config.use_bias)
        self.output_gate_proj = nn.Linear(config.hidden_size, inner, bias=False) if config.output_gate else None

    def project(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Project x `[B, T, D]` to q and k `[B, T, H, K]` and v `[B, T, H, V]`, and apply the short convolution."""
        qkv = self.qkv_proj(x)
        if self.convolution is not None:
            qkv = self.convolution(qkv, tokens, state)
        key_width, value_width = self.heads * self.key_dim, self.heads * self.head_dim
        q, k, v = qkv.split([key_width, key_width, value_width], dim=2)
        return q.unflatten(2, (self.heads, -1)), k.unflatten(2, (self.heads, -1)), v.unflatten(2, (self.heads, -1))

    def finish(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Gate and project the mixed values `[B, T, H, V]` to `[B, T, D]`; x `[B, T, D]` is the input of the mixer."""
        output = output.flatten(2)
        if self.output_gate_proj is not None:
            output = output * F.silu(self.output_gate_proj(x))
        return self.o_proj(output)

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"
    ) -> torch.Tensor:
        """Mix normalised hidden states over T.

        Args:
            x: `[B, T, D]`.
            tokens: Padding, dialogues and positions of the tokens.
            state: State before the tokens; it is replaced by the state after them. `None` starts from an empty state,
                and the new state is not stored.
            form: See `Form`.

        Returns:
            `[B, T, D]`.
        """
        raise NotImplementedError


def rotary(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Apply rotary position embeddings (RoFormer, arXiv 2104.09864, eq. 34), with the halves paired as in GPT-NeoX.

    Args:
        x: `[B, T, H, K]`, K even.
        positions: int64 `[B, T]`.
        theta: Base of the wavelengths.

    Returns:
        `[B, T, H, K]`.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angles = (positions[..., None] * frequencies)[:, :, None]  # [B, T, 1, K/2]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
