"""The model's settings, kept in a checkpoint's config.json."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig

from chatbot.dialogue import LAYOUTS

LAYER_TYPES = ("linear_decay", "linear_gated")
"""Mixers that a layer can have; `chatbot.attention.MIXERS` maps each name to its module."""


@strict
class XianliaoConfig(PretrainedConfig):
    """Settings of `XianliaoForCausalLM`; names are transformers' where it has them.

    Attributes:
        vocab_size: Number of token ids.
        hidden_size: Width D of the residual stream; `num_attention_heads * head_dim` need not equal it.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads H of every mixer.
        head_dim: Width K of a head's query and key, and of its value.
        intermediate_size: Width of the feed-forward layer.
        layer_types: The mixer of each block; `None` means `linear_gated` everywhere.
        chunk_size: Tokens that the chunked form of linear attention works on at a time.
        num_speakers: Rows of the speaker embedding.
        layer_norm_eps: Epsilon of every normalisation.
        initializer_range: Standard deviation of the initial weights.
        layout: Name of the sample layout in `chatbot.dialogue`.
        context_tokens: Longest history in tokens before old turns are dropped.
        weight_storage: `float`, or `int8` when the folder holds int8 matrices with a scale per row.
    """

    model_type = "xianliao"
    keys_to_ignore_at_inference = ["past_key_values"]

    vocab_size: int = 8192
    hidden_size: int = 384
    num_hidden_layers: int = 6
    num_attention_heads: int = 6
    head_dim: int = 64
    intermediate_size: int = 1536
    layer_types: list[str] | None = None
    chunk_size: int = 64
    num_speakers: int = 2
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    layout: str = "dialogpt"
    context_tokens: int = 1024
    weight_storage: str = "float"

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = ["linear_gated"] * self.num_hidden_layers
        super().__post_init__(**kwargs)

    def validate_layer_type(self):
        """Part of `@strict`-powered validation: our own mixers instead of transformers' list."""
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(f"`layer_types` has {', '.join(unknown)}; the mixers are {', '.join(LAYER_TYPES)}.")
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` names {len(self.layer_types)} layers but `num_hidden_layers` is {self.num_hidden_layers}."
            )

    def validate_sizes(self):
        """Part of `@strict`-powered validation: sizes are positive, layout and storage exist."""
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        for name in (*sizes, "intermediate_size", "chunk_size", "num_speakers", "context_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        if self.layout not in LAYOUTS:
            raise ValueError(f"`layout` is {self.layout!r}; the layouts are {', '.join(LAYOUTS)}.")
        if self.weight_storage not in ("float", "int8"):
            raise ValueError(f"`weight_storage` is {self.weight_storage!r}; it is float or int8.")


AutoConfig.register(XianliaoConfig.model_type, XianliaoConfig, exist_ok=True)
