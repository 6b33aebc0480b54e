"""A chat model of another project, run by transformers, in the shape that the rest of the project asks of a model.

Qwen2, Qwen3, Llama and Mistral folders as transformers writes them, weights from safetensors alone, no code of theirs
run. The folder's own chat template is the layout (`chatbot.text.chat_template`); `chatbot.checkpoint.lora` fine-tunes such a model.

Dims: B batch, T tokens, S tokens before them, D hidden size, V vocabulary.
"""

from __future__ import annotations

import copy
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils.logging import disable_progress_bar

from chatbot.errors import CheckpointError, first_line
from chatbot.model.loss import next_token_loss, smoothing_for
from chatbot.model.state import check_positions
from chatbot.text.layouts import ChatTemplateLayout
from chatbot.text.tokenizer import DialogueTokenizer

MODEL_TYPES = ("llama", "mistral", "qwen2", "qwen3")
"""Kinds whose layers all attend to everything before and whose logits are one product with the hidden state."""

MOST_CONTEXT_TOKENS = 1024


@dataclass(frozen=True)
class ForeignConfig:
    """What the project asks of a model's config.

    Attributes:
        vocab_size: Ids that have a token; the model may have more rows, which are never used.
        max_position_embeddings: Most tokens of a dialogue that the model has been made for.
        context_tokens: Longest history in tokens before old turns are dropped.
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
    pad_token_id: int
    bos_token_id: int
    eos_token_id: int
    layer_types: tuple[str, ...]
    layout: str = ChatTemplateLayout.name


class ForeignState:
    """What the model remembers of its rows.

    Attributes:
        cache: Keys and values of every layer.
        keep: bool `[B, S]`, False at padding; None while there is none.
    """

    def __init__(self):
        self.cache, self.keep = DynamicCache(), None

    @property
    def tokens(self) -> int:
        """S, padding included."""
        return self.cache.get_seq_length()

    def note(self, keep: torch.Tensor | None, rows: int, width: int, device: torch.device) -> torch.Tensor | None:
        """`keep` `[B, S + T]` after T = `width` more tokens, of which `keep` `[B, T]` (None: all) are no padding."""
        if keep is None and self.keep is None:
            return None
        before = torch.ones(rows, self.tokens, dtype=torch.bool, device=device) if self.keep is None else self.keep
        now = torch.ones(rows, width, dtype=torch.bool, device=device) if keep is None else keep
        self.keep = torch.cat([before, now], 1)
        return self.keep

    def clone(self) -> ForeignState:
        """A copy that goes its own way; cheap, because transformers replaces the tensors and never writes into them."""
        other = ForeignState()
        other.cache.layers = [copy.copy(layer) for layer in self.cache.layers]
        other.keep = self.keep
        return other

    def select(self, rows: torch.Tensor) -> None:
        """Keeps these rows, in this order; `rows` int64 `[B']`, repeats allowed."""
        self.cache.batch_select_indices(rows)
        if self.keep is not None:
            self.keep = self.keep[rows]

    def nbytes(self) -> int:
        """Bytes of all keys and values."""
        tensors = [t for layer in self.cache.layers for t in (layer.keys, layer.values)]
        return sum(t.numel() * t.element_size() for t in tensors)


class ForeignForCausalLM(nn.Module):
    """Tokens in, next-token logits out, as `chatbot.model.network.XianliaoForCausalLM`; it knows no speaker embeddings.

    Attributes:
        network: transformers' model, or a PeftModel around it.
        has_adapter: Whether it is a PeftModel.
        source: The folder of its weights.
    """

    def __init__(self, network: PreTrainedModel, tokenizer: DialogueTokenizer, source: Path):
        super().__init__()
        self.network, self.has_adapter, self.source = network, False, source
        theirs = network.config
        layout = ChatTemplateLayout(tokenizer)
        most = min(theirs.max_position_embeddings, getattr(theirs, "sliding_window", None) or 2**31)
        context_tokens = min(MOST_CONTEXT_TOKENS, most // 2 - 1)
        around = layout.opening_tokens + layout.turn_tokens
        if around > context_tokens // 2:  # so that a longest message still leaves the reply its half
            raise CheckpointError(
                f"The chat template of {source} alone takes {around} tokens and the model holds {most}; use a longer one."
            )
        if tokenizer.vocab_size > network.get_output_embeddings().weight.shape[0]:
            raise CheckpointError(
                f"{source} has a tokenizer of {tokenizer.vocab_size} tokens but a model of {theirs.vocab_size};"
                " copy the folder again."
            )
        self.config = ForeignConfig(
            model_type=theirs.model_type,
            vocab_size=tokenizer.vocab_size,
            hidden_size=theirs.hidden_size,
            num_hidden_layers=theirs.num_hidden_layers,
            num_attention_heads=theirs.num_attention_heads,
            head_dim=getattr(theirs, "head_dim", None) or theirs.hidden_size // theirs.num_attention_heads,
            intermediate_size=theirs.intermediate_size,
            max_position_embeddings=most,
            context_tokens=context_tokens,
            pad_token_id=tokenizer.pad_id,
            bos_token_id=tokenizer.cls_id,
            eos_token_id=tokenizer.sep_id,
            layer_types=("full_attention",) * theirs.num_hidden_layers,
        )

    @property
    def inner(self) -> PreTrainedModel:
        """transformers' model, with or without adapters in its layers."""
        return self.network.get_base_model() if self.has_adapter else self.network

    @property
    def most_tokens(self) -> int:
        """The longest dialogue."""
        return self.config.max_position_embeddings

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    def new_state(self) -> ForeignState:
        """An empty state, ready for the first token."""
        return ForeignState()

    def get_input_embeddings(self) -> nn.Module:
        return self.inner.get_input_embeddings()

    def gradient_checkpointing_enable(self, options: dict | None = None) -> None:
        """Layers are computed again on the way back; `options` are transformers'."""
        self.inner.gradient_checkpointing_enable(options)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        past_key_values: ForeignState | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: torch.Tensor | float | None = None,
        form: str = "auto",
        label_smoothing: float = 0.0,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token at every position; arguments and result are those of `XianliaoForCausalLM.forward`.

        `token_type_ids` is not used: the template's ids say who speaks. `form` naive is twice differentiable.

        Raises:
            DialogueError: A row is longer than the model has been made for.
        """
        state = past_key_values
        if state is None and use_cache:
            state = self.new_state()
        if state is not None and segment_ids is not None:
            raise ValueError("A state remembers one dialogue a row: give either segment_ids or a state (use_cache).")
        positions, mask = self._place(input_ids, attention_mask, segment_ids, state)
        inner = self.inner
        cache = None if state is None else state.cache
        options = {"position_ids": positions, "attention_mask": mask, "past_key_values": cache}
        with sdpa_kernel(SDPBackend.MATH) if form == "naive" else nullcontext():
            x = inner.base_model(input_ids, use_cache=cache is not None, **options).last_hidden_state  # [B, T, D]
        head = inner.get_output_embeddings()
        weight = head.weight[: self.config.vocab_size]  # rows beyond it have no token
        bias = None if head.bias is None else head.bias[: self.config.vocab_size]
        loss = None
        if labels is not None:
            smoothing = smoothing_for(self.config, label_smoothing, x.device)
            loss = next_token_loss(x, (weight, bias), labels, num_items_in_batch, form, smoothing)
            if self.training:
                return CausalLMOutputWithPast(loss=loss, past_key_values=state)
        logits = F.linear(x[:, -logits_to_keep:] if logits_to_keep and labels is None else x, weight, bias)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state)

    def _place(self, input_ids, attention_mask, segment_ids, state: ForeignState | None):
        """Positions int64 `[B, T]`, and who sees whom, bool `[B, 1, T, S + T]`, or None where all see all before."""
        rows, width = input_ids.shape
        device = input_ids.device
        past = 0 if state is None else state.tokens
        keep = None if attention_mask is None else attention_mask[:, -width:].bool()
        keep = None if keep is None or keep.all() else keep
        if state is not None:
            keep = state.note(keep, rows, width, device)
        query, key = torch.arange(past, past + width, device=device), torch.arange(past + width, device=device)
        positions = query.expand(rows, -1)
        if keep is not None:
            positions = (keep.long().cumsum(1) - 1).clamp_min(0)[:, past:]
        if segment_ids is not None:  # each packed dialogue starts at 0
            starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
            positions = query - torch.where(starts, query, 0).cummax(1).values
        check_positions(positions, self.most_tokens)
        if keep is None and segment_ids is None:
            return positions, None
        mask = (key <= query[:, None])[None]
        if keep is not None:
            mask = mask & keep[:, None]
        if segment_ids is not None:
            mask = mask & (segment_ids[:, :, None] == segment_ids[:, None])
        mask = mask | (key == query[:, None])  # padding sees itself: a row that sees nothing is NaN
        return positions, mask[:, None]


def load_foreign(path: Path, tokenizer: DialogueTokenizer, dtype: torch.dtype = torch.float32) -> ForeignForCausalLM:
    """The model of a transformers folder of one of `MODEL_TYPES`, on the CPU in evaluation mode.

    Args:
        path: The folder.
        tokenizer: The folder's, or that of an adapter to it.
        dtype: Of the weights.

    Raises:
        CheckpointError: A file is missing, damaged or does not fit the others.
        DialogueError: The tokenizer has no chat template.
    """
    disable_progress_bar()
    try:
        network, found = AutoModelForCausalLM.from_pretrained(
            path,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except Exception as error:  # safetensors, transformers and torch raise many kinds
        raise CheckpointError(f"The model in {path} cannot be read ({first_line(error)}); copy it again.") from None
    wrong = keys_that_do_not_fit(found)
    if wrong:
        raise CheckpointError(f"The weights in {path} do not fit its config.json ({', '.join(wrong)}); copy it again.")
    return ForeignForCausalLM(network, tokenizer, path).eval()


def keys_that_do_not_fit(found: dict) -> list[str]:
    """One weight of each kind that transformers' loading info finds fault with, in words."""
    kinds = ("missing_keys", "unexpected_keys", "mismatched_keys")
    return [f"{kind.removesuffix('_keys')} {min(map(str, found[kind]))}" for kind in kinds if found[kind]]
