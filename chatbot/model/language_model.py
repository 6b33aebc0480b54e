"""Forward pass from hidden states to logits and loss, shared by our network and the chat models of transformers.

Dims: B batch, T tokens, D hidden size, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from transformers.modeling_outputs import CausalLMOutputWithPast

from chatbot.model.attention.mixer import Form
from chatbot.model.end_head import EndLogProbs, combine
from chatbot.model.loss import next_token_loss, smoothing_for
from chatbot.model.protocol import CompiledNetwork


class LanguageModel(nn.Module):
    """Tokens and speakers in, logits of the next token and loss out.

    A subclass has a `config` and implements `new_state`, `hidden_states` and `output_head`. It then satisfies
    `chatbot.model.protocol.DialogueModel`.

    Attributes:
        native: The weights for the compiled library; `chatbot.decoding.batch.make_native` sets it.
    """

    native: CompiledNetwork | None = None
    config: Any  # a chatbot.model.protocol.ModelConfig; transformers declares its own type

    def new_state(self) -> Any:
        """Return an empty state, ready for the first token."""
        raise NotImplementedError

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        state: Any,
        form: Form,
    ) -> tuple[torch.Tensor, EndLogProbs | None]:
        """Return hidden states `[B, T, D]` after the last norm, and the output of an end head if the model has one.

        The arguments are those of `forward`; `state` is updated in place.
        """
        raise NotImplementedError

    def output_head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight `[V, D]` and bias `[V]` or None of the output head."""
        raise NotImplementedError

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: float | torch.Tensor | None = None,
        form: Form = "auto",
        label_smoothing: float = 0.0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Return the logits of the next token at every position, and the loss.

        Args:
            input_ids: int64 `[B, T]`.
            attention_mask: `[B, T]` or, with a state, `[B, past + T]`; 0 at padding, on either side.
            token_type_ids: Speaker ids int64 `[B, T]` as `chatbot.text.layouts` writes them; `None` means speaker 0.
                Chat models ignore them, because their template names the speakers.
            segment_ids: int `[B, T]`, non-decreasing: index of each token's packed dialogue. Dialogues do not see each
                other. Not together with a state.
            past_key_values: State before the first token, updated in place.
            labels: int64 `[B, T]`, not shifted, -100 without loss.
            use_cache: Return a state (a new one unless `past_key_values` is given).
            logits_to_keep: Return logits of this many last positions; 0 means all.
            num_items_in_batch: Divisor of the summed loss, instead of the number of targets in this call.
            form: `auto`, or `naive` for the definition of every mixer (slow; the reference in tests, and twice
                differentiable).
            label_smoothing: Share of the target's mass that moves to all ids but padding, [CLS] and the end of turn.
            **kwargs: Ignored; transformers' `generate()` passes some.

        Returns:
            logits `[B, T, V]`; normalised log-probabilities with an end head; None if labels are given in training
            mode, which needs the loss alone. loss: nats per target, None without labels. past_key_values: the state.

        Raises:
            ValueError: Both `segment_ids` and a state are given.
            DialogueError: A dialogue is longer than `max_tokens`.
        """
        state = past_key_values
        if state is None and use_cache:
            state = self.new_state()
        if state is not None and segment_ids is not None:
            raise ValueError("A state holds one dialogue per row: pass either segment_ids or a state (use_cache).")
        x, end = self.hidden_states(input_ids, attention_mask, token_type_ids, segment_ids, state, form)
        weight, bias = self.output_head()
        end_id = self.config.eos_token_id
        loss = None
        if labels is not None:
            smoothing = smoothing_for(self.config, label_smoothing, x.device)
            loss = next_token_loss(x, (weight, bias), labels, num_items_in_batch, form, smoothing, end, end_id)
            if self.training:
                return CausalLMOutputWithPast(loss=loss, past_key_values=state)
        last = slice(-logits_to_keep if logits_to_keep and labels is None else 0, None)
        logits = F.linear(x[:, last], weight, bias)
        if end is not None:
            logits = combine(logits, end[:, last], end_id)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state)
