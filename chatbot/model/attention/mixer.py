"""What every mixer shares: projections in and out, an optional output gate, and what it is told about its tokens."""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import nn

from chatbot.model.attention.convolution import ShortConvolution, Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.state import MixerState

Form = Literal["auto", "naive"]
"""`auto` takes the step for one token with a state and the parallel form otherwise; `naive` is the definition."""


class Mixer(nn.Module):
    """Projections in and out around something that mixes over time; subclasses write `forward`.

    Args:
        config: Sizes.
        key_dim: Width K of a head's query and key; `None` is `config.head_dim`. Values are `config.head_dim` wide.
        projects_queries: False leaves out queries and keys: only values are projected.
    """

    needs_positions = False

    def __init__(self, config: XianliaoConfig, key_dim: int | None = None, projects_queries: bool = True):
        super().__init__()
        self.heads, self.head_dim = config.num_attention_heads, config.head_dim
        self.key_dim = (key_dim or config.head_dim) if projects_queries else 0
        inner = self.heads * self.head_dim
        width = self.heads * (2 * self.key_dim + self.head_dim)
        self.qkv_proj = nn.Linear(config.hidden_size, width, bias=config.use_bias)
        self.convolution = ShortConvolution(width, config.short_conv) if config.short_conv else None
        self.o_proj = nn.Linear(inner, config.hidden_size, bias=config.use_bias)
        self.o_proj.into_residual = True
        self.output_gate_proj = nn.Linear(config.hidden_size, inner, bias=False) if config.output_gate else None

    def project(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None):
        """x `[B, T, D]` -> q, k `[B, T, H, K]`, v `[B, T, H, V]`, after the short convolution."""
        widths = [self.heads * self.key_dim] * 2 + [self.heads * self.head_dim]
        qkv = self.qkv_proj(x)
        if self.convolution is not None:
            qkv = self.convolution(qkv, tokens, state)
        return tuple(part.unflatten(2, (self.heads, -1)) for part in qkv.split(widths, dim=2))

    def finish(self, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        """Gates and projects what was mixed: `[B, T, H, V]` -> `[B, T, D]`."""
        output = output.flatten(2)
        if self.output_gate_proj is not None:
            output = output * F.silu(self.output_gate_proj(x))
        return self.o_proj(output)

    def forward(self, x: torch.Tensor, tokens: Tokens, state: MixerState | None = None, form: Form = "auto"):
        """Mixes normalised hidden states `[B, T, D]` over T.

        Args:
            x: Input.
            tokens: What is known about them.
            state: Read before, replaced after; `None` starts empty and remembers nothing.
            form: See `Form`.
        """
        raise NotImplementedError


def rotary(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 34), the halves paired as in GPT-NeoX.

    Args:
        x: `[B, T, H, K]`, K even.
        positions: `[B, T]`.
        theta: Base of the wavelengths.
    """
    half = x.shape[-1] // 2
    wide = torch.promote_types(x.dtype, torch.float32)
    frequencies = theta ** (-torch.arange(half, device=x.device, dtype=wide) / half)
    angles = (positions[..., None] * frequencies)[:, :, None]  # [B, T, 1, K/2]
    cosine, sine = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    first, second = x[..., :half], x[..., half:]
    return torch.cat([first * cosine - second * sine, second * cosine + first * sine], -1)
