"""The whole network, readable from top to bottom; `chatbot.model.language_model` turns its hidden states into logits.

Pre-norm blocks of a causal mixer (`chatbot.model.attention`) and a feed-forward layer, speaker embeddings added to the
token embeddings, input and output embeddings tied. The config can also select parts of GPT-2: biases, learned positions
and its activation. The network is a transformers model: `AutoModelForCausalLM.from_pretrained` and `generate()` work
after `import chatbot`.

Dims: B batch, T tokens, D hidden size, H heads, K head width, V vocabulary (in `attention/`: the width of a value).
"""

from __future__ import annotations

from typing import Any, cast

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import cached_file

from chatbot.model.attention import build_mixer
from chatbot.model.attention.mixer import Form, Mixer, ResidualProjection
from chatbot.model.attention.tokens import Tokens, dialogue_starts
from chatbot.model.config import XianliaoConfig
from chatbot.model.end_head import EndHead, EndLogProbs
from chatbot.model.int8 import dequantize
from chatbot.model.language_model import LanguageModel
from chatbot.model.latent.layers import ReplyLatent, ZeroProjection
from chatbot.model.slots.states import SlotDialogueState
from chatbot.model.slots.table import SlotTable, SlotView
from chatbot.model.state import DialogueState, check_positions
from chatbot.text.dialogue import SPEAKERS


class FeedForward(nn.Module):
    """Two matrices with an activation between. Exact (erf) GELU is several times faster than the tanh form on CPUs."""

    def __init__(self, config: XianliaoConfig):
        super().__init__()
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=config.use_bias)
        self.down_proj = ResidualProjection(config.intermediate_size, config.hidden_size, bias=config.use_bias)
        self.activation = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(self.activation(self.up_proj(x)))


class Block(GradientCheckpointingLayer):
    """x + mixer(norm(x)), then x + feed_forward(norm(x)); x is `[B, T, D]`."""

    def __init__(self, config: XianliaoConfig, layer_index: int):
        super().__init__()
        self.index = layer_index
        self.mixer_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.use_bias)
        self.mixer = build_mixer(config, layer_index)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.use_bias)
        self.feed_forward = FeedForward(config)
        self.dropout = nn.Dropout(0.0)  # set by training; the config has no dropout

    def forward(
        self, x: torch.Tensor, tokens: Tokens, state: DialogueState | None, form: Form = "auto"
    ) -> torch.Tensor:
        mixer_state = None if state is None else state.layers[self.index]
        x = x + self.dropout(self.mixer(self.mixer_norm(x), tokens, mixer_state, form))
        return x + self.dropout(self.feed_forward(self.feed_forward_norm(x)))


class XianliaoForCausalLM(LanguageModel, PreTrainedModel, GenerationMixin):
    """Tokens and speakers in, logits of the next token out."""

    config_class = XianliaoConfig
    base_model_prefix = ""
    _tied_weights_keys = {"lm_head.weight": "token_embedding.weight"}
    _no_split_modules = ["Block"]
    _is_stateful = True  # the state cannot be cropped, so generate() must not use assisted decoding
    supports_gradient_checkpointing = True

    def __init__(self, config: XianliaoConfig):
        super().__init__(config)
        self.token_embedding = nn.Embedding(config.vocab_size, config.hidden_size)
        self.speaker_embedding = nn.Embedding(SPEAKERS, config.hidden_size)
        learned = config.positions == "learned"
        self.position_embedding = nn.Embedding(config.max_position_embeddings, config.hidden_size) if learned else None
        blocks = [Block(config, index) for index in range(config.num_hidden_layers)]
        self.blocks = nn.ModuleList(blocks)
        self.needs_positions = learned or any(block.mixer.needs_positions for block in blocks)
        self.final_norm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps, bias=config.use_bias)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.end_head = EndHead(config) if config.termination != "softmax" else None
        self.latent = ReplyLatent(config) if config.latent != "none" else None
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Draw normal weights; projections into the residual stream shrink with depth (GPT-2, section 2.3).

        transformers calls this only for modules with direct parameters.
        """
        std = self.config.initializer_range
        if isinstance(module, ZeroProjection):
            init.zeros_(module.weight)
        elif isinstance(module, (nn.Linear, nn.Embedding)):
            shrinks = isinstance(module, ResidualProjection)
            init.normal_(module.weight, std=std / (2 * self.config.num_hidden_layers) ** 0.5 if shrinks else std)
            if isinstance(module, nn.Linear) and module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif callable(init_weights := getattr(module, "init_weights", None)):
            init_weights(std)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, config=None, **kwargs):
        """Load a checkpoint as transformers does; int8 matrices (`config.weight_storage`) are converted to floats."""
        if config is None:
            config = XianliaoConfig.from_pretrained(pretrained_model_name_or_path)
        if config.weight_storage != "int8" or kwargs.get("state_dict") is not None:
            return super().from_pretrained(pretrained_model_name_or_path, *args, config=config, **kwargs)
        tensors = dequantize(load_file(cached_file(pretrained_model_name_or_path, "model.safetensors")))
        config.weight_storage = "float"
        dtype = kwargs.pop("dtype", None)
        kwargs["dtype"] = torch.float32 if dtype in (None, "auto") else dtype
        return super().from_pretrained(None, *args, config=config, state_dict=tensors, **kwargs)

    def get_input_embeddings(self) -> nn.Module:
        return self.token_embedding

    def set_input_embeddings(self, value: nn.Module) -> None:
        assert isinstance(value, nn.Embedding)
        self.token_embedding = value

    def get_output_embeddings(self) -> nn.Linear:
        return self.lm_head

    @property
    def max_tokens(self) -> int | None:
        """Maximum number of tokens of a dialogue, with learned positions or a Synthesizer; None for no limit."""
        limited = any(name.startswith("synthesizer") for name in self.config.layer_types)
        return self.config.max_position_embeddings if limited or self.position_embedding is not None else None

    def new_state(self) -> DialogueState:
        """Return an empty state, ready for the first token."""
        return DialogueState(self.config.num_hidden_layers)

    def new_table(self, rows: int = 1) -> SlotTable:
        """Return a table of empty states, one per row; its last layer serves the end head."""
        mixers = [cast(Mixer, block.mixer) for block in self.blocks]
        return SlotTable([*(mixer.growing for mixer in mixers), ()], rows)

    def state_of(self, view: SlotView) -> SlotDialogueState:
        """Return a state that reads and writes the rows of a view of a table."""
        return SlotDialogueState(view)

    def output_head(self) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Return weight `[V, D]` and bias (None) of the output head."""
        return self.lm_head.weight, self.lm_head.bias

    def hidden_states(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        token_type_ids: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        state: DialogueState | None,
        form: Form,
    ) -> tuple[torch.Tensor, EndLogProbs | None]:
        """Return hidden states `[B, T, D]` after the last norm, and the output of the end head or None."""
        x, tokens = self.embed_and_mix(input_ids, attention_mask, token_type_ids, segment_ids, state, form)
        if self.end_head is None:
            return x, None
        return x, self.end_head(x, input_ids, tokens, None if state is None else state.layers[-1])

    def embed_and_mix(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        token_type_ids: torch.Tensor | None = None,
        segment_ids: torch.Tensor | None = None,
        state: DialogueState | None = None,
        form: Form = "auto",
        latent: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, Tokens]:
        """Run embeddings, blocks and the last norm.

        Args:
            input_ids, attention_mask, token_type_ids, segment_ids, state, form: As in `LanguageModel.forward`.
            latent: z of each token, `[B, T, Z]`. Default: the z in the state, `latent` `[B, Z]`, or no z.

        Returns:
            Hidden states `[B, T, D]`, and the description of the tokens that the mixers received.
        """
        tokens = self._describe(input_ids, attention_mask, segment_ids, state)
        x = self.token_embedding(input_ids)  # [B, T, D]
        if token_type_ids is None:
            token_type_ids = torch.zeros_like(input_ids)
        x = x + self.speaker_embedding(token_type_ids)
        if self.position_embedding is not None:
            check_positions(tokens.known_positions, self.config.max_position_embeddings)
            x = x + self.position_embedding(tokens.known_positions)
        if latent is None and self.latent is not None and state is not None:
            of_rows = state.layers[-1].tensors.get("latent")
            latent = None if of_rows is None else of_rows[:, None].to(x.dtype)
        for index, block in enumerate(self.blocks):
            if latent is not None:
                assert self.latent is not None
                x = x + self.latent.skips[index](latent)
            x = block(x, tokens, state, form)
        x = self.final_norm(x)
        if self.latent is not None and state is not None:
            state.layers[-1].remember(hidden=x[:, -1])  # the prior of a reply depends on it
        return x, tokens

    def _describe(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None,
        segment_ids: torch.Tensor | None,
        state: DialogueState | None,
    ) -> Tokens:
        """Describe the tokens for the mixers, and count them in the state."""
        keep = None
        if attention_mask is not None:
            keep = attention_mask[:, -input_ids.shape[1] :].bool()
            keep = None if keep.all() else keep
        if not self.needs_positions:
            return Tokens(keep, segment_ids)
        real = torch.ones_like(input_ids) if keep is None else keep.long()
        positions = (DialogueState(0) if state is None else state).count(real)
        if segment_ids is not None:  # each packed dialogue but the first, which may continue a state, starts at 0
            index = torch.arange(input_ids.shape[1], device=input_ids.device)
            start = torch.where(dialogue_starts(segment_ids), index, 0).cummax(1).values
            positions = torch.where(start > 0, index - start, positions)
        return Tokens(keep, segment_ids, positions)

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> bool:
        """Give `generate()` our state; transformers' own cache of linear layers does not count tokens."""
        if model_kwargs.get("past_key_values") is None and generation_config.use_cache is not False:
            model_kwargs["past_key_values"] = self.new_state()
            return True
        return False

    def _update_model_kwargs_for_generation(self, outputs, model_kwargs, *args, **kwargs) -> dict[str, Any]:
        """Change the speaker at the first new token of `generate()`: a prompt ends with the [SEP] of its last turn."""
        started = model_kwargs.pop("reply_started", False)
        model_kwargs = super()._update_model_kwargs_for_generation(outputs, model_kwargs, *args, **kwargs)
        speakers = model_kwargs.get("token_type_ids")
        if speakers is not None and not started:
            model_kwargs["token_type_ids"] = torch.cat([speakers[:, :-1], 1 - speakers[:, -2:-1]], 1)
        return {**model_kwargs, "reply_started": True}


AutoModelForCausalLM.register(XianliaoConfig, XianliaoForCausalLM, exist_ok=True)
