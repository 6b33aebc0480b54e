"""Chat models of other projects, run by transformers behind the interface that the rest of the project uses.

Folders of the types in `MODEL_TYPES`, as transformers writes them, are supported; `chatbot.checkpoint.chat_model`
loads them. The chat template of the folder is the layout
(`chatbot.text.chat_template`); `chatbot.checkpoint.lora` reads and writes adapters.

Dims: B batch, T tokens, S tokens before them, D hidden size, V vocabulary.
"""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import DynamicCache, PreTrainedModel

from chatbot.errors import CheckpointError
from chatbot.model.attention.mixer import Form
from chatbot.model.attention.tokens import dialogue_starts, visible_keys
from chatbot.model.end_head import EndLogProbs
from chatbot.model.language_model import LanguageModel
from chatbot.model.slots.states import SlotChatState
from chatbot.model.slots.table import SlotTable, SlotView
from chatbot.model.state import check_positions
from chatbot.text.layouts import ChatTemplateLayout, SpecialIds
from chatbot.text.tokenizer import DialogueTokenizer

MODEL_TYPES = (
    *("llama", "mistral", "qwen2", "qwen3", "arcee", "cohere", "ernie4_5", "gemma", "gemma3_text", "glm4", "granite"),
    *("helium", "hunyuan_v1_dense", "olmo2", "phi3", "seed_oss", "smollm3"),
)
"""Model types whose layers attend to every earlier token, or to those in a window that no dialogue here exceeds, and whose
logits are one product with the hidden state, up to a factor."""

MAX_CONTEXT_TOKENS = 1024
"""Maximum length of the history in tokens, even if the model could read more, unless the user gives another one."""


@dataclass(frozen=True)
class HfChatConfig:
    """Settings of a chat model that the project reads; see `chatbot.model.protocol.ModelConfig`.

    Attributes:
        vocab_size: Number of ids that have a token; the model's embedding may have more rows, which are not used.
        max_position_embeddings: Maximum number of tokens of a dialogue.
        context_tokens: Maximum length of the history in tokens; older turns are dropped.
    """

    model_type: str
    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    head_dim: int
    intermediate_size: int
    max_position_embeddings: int
    context_tokens: int
    pad_token_id: int | None
    bos_token_id: int | None
    eos_token_id: int | None
    layer_types: tuple[str, ...]
    layout: str = ChatTemplateLayout.name
    direction: str = "forward"


class HfChatState:
    """State of a batch of dialogues.

    Attributes:
        cache: Keys and values of every layer.
        keep: bool `[B, S]`, False at padding; None without padding.
    """

    def __init__(self) -> None:
        self.cache = DynamicCache()
        self.keep: torch.Tensor | None = None

    @property
    def tokens(self) -> int:
        """Number of tokens S, padding included."""
        return self.cache.get_seq_length()

    def extend_mask(
        self, keep: torch.Tensor | None, rows: int, width: int, device: torch.device
    ) -> torch.Tensor | None:
        """Add T = `width` more tokens to `keep`.

        Args:
            keep: bool `[B, T]`, False at padding; None for no padding.
            rows: B.
            width: T.
            device: Device of the mask.

        Returns:
            bool `[B, S + T]`, or None without padding.
        """
        if keep is None and self.keep is None:
            return None
        before = torch.ones(rows, self.tokens, dtype=torch.bool, device=device) if self.keep is None else self.keep
        now = torch.ones(rows, width, dtype=torch.bool, device=device) if keep is None else keep
        self.keep = torch.cat([before, now], 1)
        return self.keep


class HfChatModel(LanguageModel):
    """A chat model of transformers with the interface of `XianliaoForCausalLM`; it has no speaker embeddings.

    Args:
        network: The model.
        tokenizer: Tokenizer of its folder, with a chat template.
        source: Folder of its weights.

    Attributes:
        network: transformers' model, or a PeftModel around it.
        has_adapter: Whether `network` is a PeftModel.
        source: Folder of the weights.
        logits_factor: Factor of the product of hidden state and output head (Cohere's logit_scale, 1 / Granite's
            logits_scaling).

    Raises:
        CheckpointError: The tokenizer does not fit the model, or the template leaves no room for a message.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: DialogueTokenizer, source: Path):
        super().__init__()
        self.network: Any = network  # peft's types are not available without peft
        self.has_adapter, self.source = False, source
        self.latent = None
        theirs: Any = network.config  # of one of many types
        self.logits_factor = getattr(theirs, "logit_scale", 1.0) / getattr(theirs, "logits_scaling", 1.0)
        layout = ChatTemplateLayout(cast(SpecialIds, tokenizer))
        max_tokens = min(theirs.max_position_embeddings, getattr(theirs, "sliding_window", None) or 2**31)
        self._template_tokens = layout.opening_tokens + layout.turn_tokens
        rows = network.get_output_embeddings().weight.shape[0]
        if tokenizer.vocab_size > rows:
            raise CheckpointError(
                f"The tokenizer of {source} has {tokenizer.vocab_size} tokens, but the model only {rows}. Copy the"
                " folder again."
            )
        self.config = HfChatConfig(
            model_type=theirs.model_type,
            vocab_size=tokenizer.vocab_size,
            hidden_size=theirs.hidden_size,
            num_hidden_layers=theirs.num_hidden_layers,
            num_attention_heads=theirs.num_attention_heads,
            head_dim=getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
            intermediate_size=theirs.intermediate_size,
            max_position_embeddings=max_tokens,
            context_tokens=0,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.cls_id,
            eos_token_id=tokenizer.sep_id,
            layer_types=("full_attention",) * theirs.num_hidden_layers,
        )
        self.limit_history(MAX_CONTEXT_TOKENS)

    def limit_history(self, tokens: int) -> None:
        """Set the maximum length of the history, at most half of the model's maximum length.

        Raises:
            CheckpointError: The chat template leaves no room for a message.
        """
        tokens = min(tokens, self.max_tokens // 2 - 1)
        if self._template_tokens > tokens // 2:  # so that a message of maximum length still leaves the reply its half
            raise CheckpointError(
                f"The chat template of {self.source} uses {self._template_tokens} of the {tokens} tokens of a history, which"
                " leaves too little room for a message. Use a model with a longer context, or a larger --context-tokens."
            )
        self.config = replace(self.config, context_tokens=tokens)

    @property
    def inner(self) -> Any:
        """transformers' model, with or without adapters in its layers."""
        return self.network.get_base_model() if self.has_adapter else self.network

    @property
    def max_tokens(self) -> int:
        """Maximum number of tokens of a dialogue."""
        return self.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def new_state(self) -> HfChatState:
        """Return an empty state, ready for the first token."""
        return HfChatState()

    def new_table(self, rows: int = 1) -> SlotTable:
        """Return a table of empty states, one per row."""
        return SlotTable([("keys", "values")] * self.config.num_hidden_layers, rows)

    def state_of(self, view: SlotView) -> SlotChatState:
        """Return a state that reads and writes the rows of a view of a table."""
        return SlotChatState(view)

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def gradient_checkpointing_enable(self, options: dict | None = None) -> None:
        """Recompute layers in the backward pass to save memory; `options` are transformers'."""
        self.inner.gradient_checkpointing_enable(options)

    def output_head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight `[V, D]` and bias `[V]` or None of the output head, without the rows that have no token."""
        head = self.inner.get_output_embeddings()
        size = self.config.vocab_size
        return head.weight[:size], None if head.bias is None else head.bias[:size]

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        state: HfChatState | SlotChatState | None,
        form: Form,
    ) -> tuple[torch.Tensor, EndLogProbs | None]:
        """Return hidden states `[B, T, D]` after the last norm, times `logits_factor`; there is never an end head.

        `token_type_ids` is ignored: the template's ids name the speakers. With `form` naive, the result is twice
        differentiable.
        """
        positions, mask = self._positions_and_mask(input_ids, attention_mask, segment_ids, state)
        with sdpa_kernel(SDPBackend.MATH) if form == "naive" else nullcontext():
            output = self.inner.base_model(
                input_ids,
                position_ids=positions,
                attention_mask=mask,
                past_key_values=None if state is None else state.cache,
                use_cache=state is not None,
                **({"runs": state.runs} if isinstance(state, SlotChatState) else {}),
            )
        hidden = output.last_hidden_state
        return hidden if self.logits_factor == 1 else hidden * self.logits_factor, None

    def _positions_and_mask(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        state: HfChatState | SlotChatState | None,
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return positions int64 `[B, T]` and visible keys, bool `[B, 1, T, S + T]`, or None for all keys before."""
        if isinstance(state, SlotChatState):
            check_positions(state.positions, self.max_tokens)
            return state.positions, state.mask
        rows, width = input_ids.shape
        device = input_ids.device
        past = 0 if state is None else state.tokens
        keep = None if attention_mask is None else attention_mask[:, -width:].bool()
        keep = None if keep is None or keep.all() else keep
        if state is not None:
            keep = state.extend_mask(keep, rows, width, device)
        query, key = torch.arange(past, past + width, device=device), torch.arange(past + width, device=device)
        positions = query.expand(rows, -1)
        if keep is not None:
            positions = (keep.long().cumsum(1) - 1).clamp_min(0)[:, past:]
        if segment_ids is not None:  # each packed dialogue starts at 0
            positions = query - torch.where(dialogue_starts(segment_ids), query, 0).cummax(1).values
        check_positions(positions, self.max_tokens)
        if keep is None and segment_ids is None:
            return positions, None
        visible = visible_keys(segment_ids, segment_ids, keep, key <= query[:, None])
        visible = visible | (key == query[:, None])  # padding sees itself: the softmax of a row without keys is NaN
        return positions, visible[:, None]
