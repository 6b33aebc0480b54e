"""A view of slots as the state that a model reads and updates in one forward pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.cache_utils import Cache, CacheLayerMixin
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from chatbot.model.slots.table import SlotView
from chatbot.model.state import DialogueState, MixerState

SLOT_ATTENTION = "xianliao_slots"
"""Name of the attention function of chat models in slots: transformers' SDPA, called once for each run of rows."""


class SlotMixerState(MixerState):
    """State of one mixer of our network in the slots of a view; it is updated in place."""

    def __init__(self, view: SlotView, layer: int):
        self.view, self.layer = view, layer
        self.tokens, self.is_initialized = view.past, True

    @property
    def tensors(self) -> dict[str, torch.Tensor]:  # type: ignore[override]  # Cache layers assign it, these do not
        """Tensors as they were before the new tokens, by name."""
        return self.view.tensors(self.layer)

    def remember(self, new_tokens: int = 0, **tensors: torch.Tensor) -> None:
        self.view.remember(self.layer, tensors)

    def attend(
        self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, attention: Callable[..., torch.Tensor]
    ) -> torch.Tensor:
        k, v = self.view.extend(self.layer, "keys", k), self.view.extend(self.layer, "values", v)
        visible, parts = self.view.visible, []
        for rows, total in self.view.runs:
            mask = None if visible is None else visible[rows, :, :total]
            parts.append(attention(q[rows], k[rows, :total], v[rows, :total], mask))
        return parts[0] if len(parts) == 1 else torch.cat(parts)


class SlotDialogueState(DialogueState):
    """State of our network in the slots of a view."""

    def __init__(self, view: SlotView):
        self.view, self.num_layers = view, len(view.table.growing) - 1
        Cache.__init__(self, layers=[SlotMixerState(view, layer) for layer in range(self.num_layers + 1)])

    def count(self, keep: torch.Tensor) -> torch.Tensor:
        return self.view.positions


class SlotCacheLayer(CacheLayerMixin):
    """Keys and values of one layer of a chat model, `[n, H, S, D]` for transformers, in the slots of a view."""

    def __init__(self, view: SlotView, layer: int):
        super().__init__()
        self.view, self.layer, self.is_initialized = view, layer, True

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args, **kwargs
    ) -> tuple[torch.Tensor, torch.Tensor]:
        keys = self.view.extend(self.layer, "keys", key_states.transpose(1, 2))
        values = self.view.extend(self.layer, "values", value_states.transpose(1, 2))
        return keys.transpose(1, 2), values.transpose(1, 2)

    def lazy_initialization(self, *args) -> None:
        raise NotImplementedError("The first forward pass creates the tensors.")

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.view.total, 0

    def get_seq_length(self) -> int:
        return self.view.past

    def get_max_length(self) -> int:
        return -1


class SlotChatState:
    """State of a chat model in the slots of a view.

    Attributes:
        cache: Keys and values as transformers' attention reads and writes them.
        positions: int64 `[n, T]`.
        mask: Visible entries, bool `[n, 1, T, S]`.
        runs: See `SlotView.runs`.
    """

    def __init__(self, view: SlotView):
        self.cache = Cache(layers=[SlotCacheLayer(view, layer) for layer in range(len(view.table.growing))])
        self.positions, self.runs = view.positions, view.runs
        self.mask = (torch.arange(view.total, device=view.index.device) <= view.positions[:, :, None])[:, None]


def slot_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    runs: list[tuple[slice, int]] | None = None,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Attend as transformers' SDPA does; with `runs` (see `SlotView.runs`), once per run of rows."""
    if runs is None or len(runs) == 1 or attention_mask is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)
    parts = [
        sdpa_attention_forward(
            module,
            query[rows],
            key[rows, :, :total],
            value[rows, :, :total],
            attention_mask[rows, :, :, :total],
            **kwargs,
        )[0]
        for rows, total in runs
    ]
    return torch.cat(parts), None


AttentionInterface.register(SLOT_ATTENTION, slot_attention)
AttentionMaskInterface.register(SLOT_ATTENTION, sdpa_mask)
