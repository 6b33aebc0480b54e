"""Description of the tokens of a batch: padding, packed dialogues, positions, and the masks that follow from them.

Dims: B batch, T new tokens, S remembered and new tokens together.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F


@dataclass(frozen=True)
class Tokens:
    """Description of B rows of T tokens, as every mixer receives it; `None` means the plain case.

    Attributes:
        keep: bool `[B, T]`, False at padding. `None`: no padding.
        segment_ids: int `[B, T]`, non-decreasing: index of the dialogue that a token belongs to, if several dialogues
            are packed into a row. A state that is passed together with `segment_ids` belongs to the dialogue of the
            first token. `None`: one dialogue per row.
        positions: int64 `[B, T]`, position in the dialogue, not counting padding. `None`: no mixer needs positions.
    """

    keep: torch.Tensor | None = None
    segment_ids: torch.Tensor | None = None
    positions: torch.Tensor | None = None

    @property
    def known_positions(self) -> torch.Tensor:
        """Return `positions`.

        Raises:
            ValueError: `positions` is None.
        """
        if self.positions is None:
            raise ValueError("This mixer needs positions: pass Tokens(positions=...).")
        return self.positions


def dialogue_starts(segment_ids: torch.Tensor) -> torch.Tensor:
    """Return bool `[B, T]`: True at the first token of each packed dialogue, the first token of the row included."""
    return F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0), value=True)


def visible_keys(
    query_segments: torch.Tensor | None,
    key_segments: torch.Tensor | None,
    keep: torch.Tensor | None,
    causal: torch.Tensor,
) -> torch.Tensor:
    """Return which keys each query may attend to: bool, broadcastable to `[B, T, S]`.

    Args:
        query_segments: int `[B, T]` or None.
        key_segments: int `[B, S]`, or None where `query_segments` is None.
        keep: bool `[B, S]`, False at padding, or None.
        causal: bool `[T, S]`: the keys at or before each query.
    """
    visible = causal[None]
    if query_segments is not None and key_segments is not None:
        visible = visible & (query_segments[:, :, None] == key_segments[:, None, :])
    if keep is not None:
        visible = visible & keep[:, None, :]
    return visible
