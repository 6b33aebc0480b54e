"""The model's settings, kept in a checkpoint's config.json."""

from __future__ import annotations

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig

from chatbot.model.layer_types import DEFAULT_LAYER_TYPES, LAYER_TYPES, repeat_layer_types
from chatbot.text.layouts import LAYOUTS

SYNTHESIZER_PARTS = ("dense", "random", "fixed_random", "fact_dense", "fact_random", "dot_product")
POSITIONS = ("rope", "learned", "none")
TERMINATIONS = ("softmax", "st", "nmst")
ACTIVATIONS = ("gelu", "gelu_new", "relu", "silu")


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
        hidden_act: Activation of the feed-forward layer: gelu (exact, by erf), gelu_new (tanh), relu or silu.
        layer_types: The mixer of each block, from `LAYER_TYPES`; `None` repeats `DEFAULT_LAYER_TYPES`.
        chunk_size: Tokens that the chunked form of linear attention works on at a time.
        short_conv: Tokens that a short convolution before each mixer sees; 0 leaves it out.
        output_gate: Whether the mixers' output is multiplied by SiLU of a projection of their input.
        use_bias: Whether projections and norms have biases.
        positions: `rope` (rotary, inside the mixers that need positions), `learned` (added to the embeddings) or `none`.
        linear_rope: Whether rotary positions also turn queries and keys of linear attention with a feature map; a model
            without softmax layers, decays and convolutions sees no order otherwise.
        rope_theta: Base of the rotary wavelengths.
        max_position_embeddings: Most tokens of a dialogue with learned positions, and N of a Synthesizer; other
            models have no limit.
        sliding_window: Tokens that `sliding_softmax` sees, the current one included.
        taylor_key_dim: Width of query and key of `linear_taylor2`, whose state grows with its square.
        synthesizer_mixture: What `synthesizer_mixture` mixes, from `SYNTHESIZER_PARTS`.
        num_speakers: Rows of the speaker embedding.
        layer_norm_eps: Epsilon of every normalisation.
        initializer_range: Standard deviation of the initial weights.
        termination: `softmax`, or `st` or `nmst`: the end of turn has a head of its own (`chatbot.model.end_head`).
        termination_epsilon: How much of the other tokens' mass such a head takes at every token of a turn.
        termination_delay: Tokens of a turn before NMST takes any.
        layout: Name of the sample layout in `chatbot.text.dialogue`.
        context_tokens: Longest history in tokens before old turns are dropped.
        direction: `forward`, or `backward` for a model of dialogues in reverse order, which ranks replies.
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
    hidden_act: str = "gelu"
    layer_types: list[str] | None = None
    chunk_size: int = 64
    short_conv: int = 4
    output_gate: bool = True
    use_bias: bool = False
    positions: str = "rope"
    linear_rope: bool = False
    rope_theta: float = 10000.0
    max_position_embeddings: int = 1024
    sliding_window: int = 128
    taylor_key_dim: int = 16
    synthesizer_mixture: list[str] | None = None
    num_speakers: int = 2
    layer_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    tie_word_embeddings: bool = True
    pad_token_id: int | None = 0
    bos_token_id: int | None = 1
    eos_token_id: int | None = 2
    termination: str = "softmax"
    termination_epsilon: float = 1e-3
    termination_delay: int = 0
    layout: str = "dialogpt"
    context_tokens: int = 1024
    direction: str = "forward"
    weight_storage: str = "float"

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = repeat_layer_types(DEFAULT_LAYER_TYPES, self.num_hidden_layers)
        if self.synthesizer_mixture is None:
            self.synthesizer_mixture = ["fact_random", "dot_product"]
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
        """Part of `@strict`-powered validation: sizes are positive and even where they must be."""
        sizes = ("vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim")
        lengths = ("chunk_size", "max_position_embeddings", "sliding_window", "taylor_key_dim", "context_tokens")
        for name in (*sizes, *lengths, "intermediate_size", "num_speakers"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise ValueError(f"`{name}` must be a whole number of at least 1, got {value!r}.")
        if self.num_speakers < 2:
            raise ValueError(
                f"`num_speakers` must be at least 2, for replies are spoken by another; got {self.num_speakers}."
            )
        if self.short_conv < 0 or self.short_conv == 1:
            raise ValueError(f"`short_conv` is 0 for none or at least 2, got {self.short_conv}.")
        if not 0 < self.termination_epsilon < 1 or self.termination_delay < 0:
            raise ValueError(
                "`termination_epsilon` must be between 0 and 1 and `termination_delay` at least 0, got"
                f" {self.termination_epsilon} and {self.termination_delay}."
            )
        if self.positions == "rope" and (self.head_dim % 2 or self.taylor_key_dim % 2):
            raise ValueError("`head_dim` and `taylor_key_dim` must be even for rotary positions (`positions`: rope).")

    def validate_choices(self):
        """Part of `@strict`-powered validation: names are known."""
        choices = {"layout": tuple(LAYOUTS), "positions": POSITIONS, "hidden_act": ACTIVATIONS}
        choices |= {"weight_storage": ("float", "int8"), "direction": ("forward", "backward")}
        choices["termination"] = TERMINATIONS
        for name, known in choices.items():
            if getattr(self, name) not in known:
                raise ValueError(f"`{name}` is {getattr(self, name)!r}; it is one of {', '.join(known)}.")
        unknown = sorted(set(self.synthesizer_mixture) - set(SYNTHESIZER_PARTS))
        if unknown or not self.synthesizer_mixture:
            raise ValueError(f"`synthesizer_mixture` takes some of {', '.join(SYNTHESIZER_PARTS)}, got {unknown}.")


AutoConfig.register(XianliaoConfig.model_type, XianliaoConfig, exist_ok=True)
