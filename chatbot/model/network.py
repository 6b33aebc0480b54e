"""The whole network, readable top to bottom.

Pre-norm blocks of a causal mixer (`chatbot.model.attention`) and a feed-forward layer, speaker embeddings added to the token
embeddings, input and output embeddings tied. By config also what GPT-2 has: biases, learned positions, its activation.
A transformers model: `AutoModelForCausalLM.from_pretrained` and `generate()` work after `import chatbot`.

Dims: B batch, T tokens, D hidden size, H heads, K head width, V vocabulary (width of a value inside `attention/`).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import CausalLMOutputWithPast
from transformers.utils import cached_file

from chatbot.model.attention import build_mixer
from chatbot.model.attention.mixer import Tokens
from chatbot.model.config import XianliaoConfig
from chatbot.model.end_head import EndHead, join
from chatbot.model.int8 import dequantize
from chatbot.model.loss import next_token_loss, smoothing_for
from chatbot.model.state import DialogueState, check_positions


class FeedForward(nn.Module):
    """Two matrices with an activation between; exact (erf) GELU is several times faster than the tanh form on CPUs."""

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.down_proj.into_residual = True
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(GradientCheckpointingLayer):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)); x is `[B, T, D]`."""

    def __init__(self, config: XianliaoConfig, layer_index: int):
        super().__init__()
        self.index = layer_index
        norm = {"normalized_shape": config.hidden_size, "eps": config.layer_norm_eps, "bias": config.use_bias}
        self.mixer_norm = nn.LayerNorm(**norm)
        self.mixer = build_mixer(config, layer_index)
        self.feed_forward_norm = nn.LayerNorm(**norm)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(0.0)  # a training setting, not one of the model

    def forward(self, x: torch.Tensor, tokens: Tokens, state: DialogueState | None, form: str = "auto"):
        state = None if state is None else state.layers[self.index]
        x = x + self.dropout(self.mixer(self.mixer_norm(x), tokens, state, form))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class XianliaoForCausalLM(PreTrainedModel, GenerationMixin):
    """Tokens and speakers in, next-token logits out."""

    config_class = XianliaoConfig
    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "token_embedding.weight"}
    _no_split_modules = ["Block"]
    _is_stateful = True  # the state cannot be cropped: no assisted decoding
    supports_gradient_checkpointing = True

    def __init__(self, config: XianliaoConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.speaker_embedding = nn.Embedding(config.num_speakers, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        self.blocks = nn.ModuleList(Block(config, index) for index in range(config.num_hidden_layers))
        self.needs_positions = learned or any(block.mixer.needs_positions for block in self.blocks)
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.use_bias)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.end_head = EndHead(config) if config.termination != "softmax" else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights; projections into the residual stream shrink with depth (GPT-2, section 2.3).

        transformers calls this for modules that have parameters of their own, and only for those.
        """
        std = self.config.initializer_range
        if isinstance(module, (nn.Linear, nn.Embedding)):
            into_residual = getattr(module, "into_residual", False)
            init.normal_(module.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5 if into_residual else std)
            if getattr(module, "bias", None) is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif hasattr(module, "init_weights"):
            module.init_weights(std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """transformers' own, after turning int8 matrices (`config.weight_storage`) back into floats."""
        if config is None:
            config = XianliaoConfig.from_pretrained(pretrained_model_name_or_path)
        if config.weight_storage != "int8" or kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        tensors = dequantize(cached_file(pretrained_model_name_or_path, "model.safetensors"))
        config.weight_storage = "float"
        dtype = kwargs.pop("dtype", None)
        kwargs["dtype"] = torch.float32 if dtype in (None, "auto") else dtype
        return super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)

    def get_input_embeddings(self) -> nn.Embedding:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Embedding) -> None:
        self.token_embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @property
    def most_tokens(self) -> int | None:
        """The longest dialogue, with learned positions or a Synthesizer; None is no limit."""
        limited = any(name.startswith("synthesizer") for name in self.config.layer_types)
        return self.config.max_position_embeddings if limited or self.position_embedding is not None else None

    def new_state(self) -> DialogueState:
        """An empty state, ready for the first token."""
        return DialogueState(self.config.num_hidden_layers)

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        past_key_values: DialogueState | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int = 0,
        num_items_in_batch: int | torch.Tensor | None = None,
        form: str = "auto",
        label_smoothing: float = 0.0,
        **kwargs,
    ) -> CausalLMOutputWithPast:
        """Logits of the next token at every position.

        Args:
            input_ids: int64 `[B, T]`.
            attention_mask: `[B, T]` or, with a state, `[B, past + T]`; 0 at padding, on either side.
            token_type_ids: Speaker ids int64 `[B, T]`; `None` is speaker 0 everywhere. `chatbot.text.dialogue` makes them.
            segment_ids: int `[B, T]`, non-decreasing: the packed dialogue each token belongs to. Nothing crosses from
                one to the next. Not together with a state.
            past_key_values: The state before the first token, continued in place.
            labels: int64 `[B, T]`, not shifted, -100 where there is no loss.
            use_cache: Return the state (a new one unless `past_key_values` is given).
            logits_to_keep: Only the last so many positions; 0 is all.
            num_items_in_batch: Divides the summed loss instead of this call's own number of targets.
            form: `auto`, or `naive` for the definition of every mixer (slow; the reference in tests, and twice
                differentiable).
            label_smoothing: Share of the target's mass that goes to all other ids but padding, [CLS] and end of turn.

        Returns:
            logits `[B, T, V]`, with an end head normalised log-probabilities (None where labels are given in training
            mode, which needs the loss alone), loss in nats per target (None without labels), past_key_values.
        """
        state = past_key_values
        if state is None and use_cache:
            state = self.new_state()
        if state is not None and segment_ids is not None:
            raise ValueError("A state remembers one dialogue a row: give either segment_ids or a state (use_cache).")
        x, tokens = self.hidden(input_ids, attention_mask, token_type_ids, segment_ids, state, form)
        end = None
        if self.end_head is not None:
            end = self.end_head(x, input_ids, tokens, None if state is None else state.layers[-1])
        loss = None
        if labels is not None:
            smoothing = smoothing_for(self.config, label_smoothing, x.device)
            head = (self.lm_head.weight, self.lm_head.bias)
            loss = next_token_loss(x, head, labels, num_items_in_batch, form, smoothing, end, self.config.eos_token_id)
            if self.training:
                return CausalLMOutputWithPast(loss=loss, past_key_values=state)
        kept = slice(-logits_to_keep if logits_to_keep and labels is None else 0, None)
        logits = self.lm_head(x[:, kept])
        if end is not None:
            logits = join(logits, end[:, kept], self.config.eos_token_id)
        return CausalLMOutputWithPast(loss=loss, logits=logits, past_key_values=state)

    def hidden(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        past_key_values: DialogueState | None = None,
        form: str = "auto",
    ) -> tuple[torch.Tensor, Tokens]:
        """`forward` up to the output head: states `[B, T, D]` after the last norm, and what the mixers were told."""
        tokens = self._describe(input_ids, attention_mask, segment_ids, past_key_values)
        x = self.token_embedding(input_ids)  # [B, T, D]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = x + self.speaker_embedding(token_type_ids)
        if self.position_embedding is not None:
            x = x + self._embed_positions(tokens.positions)
        for block in self.blocks:
            x = block(x, tokens, past_key_values, form)
        return self.final_norm(x), tokens

    def _describe(self, input_ids, attention_mask, segment_ids, state: DialogueState | None) -> Tokens:
        """What the mixers are told about these tokens."""
        keep = None
        if attention_mask is not None:
            keep = attention_mask[:, -input_ids.shape[1] :].bool()
            keep = None if keep.all() else keep
        if not self.needs_positions:
            return Tokens(keep, segment_ids)
        real = torch.ones_like(input_ids) if keep is None else keep.long()
        positions = (DialogueState(0) if state is None else state).positions(real)
        if segment_ids is not None:  # each packed dialogue but the first, which may continue a state, starts at 0
            places = torch.arange(input_ids.shape[1], device=input_ids.device)
            starts = F.pad(segment_ids[:, 1:] != segment_ids[:, :-1], (1, 0))
            start = torch.where(starts, places, 0).cummax(1).values
            positions = torch.where(start > 0, places - start, positions)
        return Tokens(keep, segment_ids, positions)

    def _embed_positions(self, positions: torch.Tensor) -> torch.Tensor:
        check_positions(positions, self.config.max_position_embeddings)
        return self.position_embedding(positions)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs):
        """`generate()` gets our state; transformers' own linear cache does not count tokens."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_state()

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs):
        """In `generate()` the first new token changes the speaker, for a prompt ends with the [SEP] of its last turn."""
        started = model_kwargs.pop("reply_started", False)
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        speakers = model_kwargs.get("token_type_ids")
        if speakers is not None and not started:
            model_kwargs["token_type_ids"] = torch.cat([speakers[:, :-1], 1 - speakers[:, -2:-1]], 1)
        return {**model_kwargs, "reply_started": True}


AutoModelForCausalLM.register(XianliaoConfig, XianliaoForCausalLM, exist_ok=True)
