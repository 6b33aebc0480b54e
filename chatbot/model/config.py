"""Settings of the model, as config.json of a checkpoint stores them."""

from __future__ import annotations

from math import inf

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PretrainedConfig

from chatbot.errors import shown
from chatbot.model.layer_types import DEFAULT_LAYER_TYPES, LAYER_TYPES, MAX_SHORT_CONV, MAXIMA, repeat_layer_types
from chatbot.text.layouts import LAYOUTS

SYNTHESIZER_PARTS = ("dense", "random", "fixed_random", "fact_dense", "fact_random", "dot_product")

CHOICES = {
    "layout": tuple(LAYOUTS),
    "positions": ("rope", "learned", "none"),
    "hidden_act": ("gelu", "gelu_new", "relu", "silu"),
    "termination": ("softmax", "st", "nmst"),
    "direction": ("forward", "backward"),
    "weight_storage": ("float", "int8"),
    "latent": ("none", "gaussian", "discrete"),
}
"""Allowed values of the settings that are names."""


@strict
class XianliaoConfig(PretrainedConfig):
    """Settings of `XianliaoForCausalLM`. Settings that transformers also has carry the same names as there.

    Attributes:
        vocab_size: Number of token ids.
        hidden_size: Width D of the residual stream; `num_attention_heads * head_dim` need not equal it.
        num_hidden_layers: Number of blocks.
        num_attention_heads: Heads H of every mixer.
        head_dim: Width K of query, key and value of a head.
        intermediate_size: Width of the feed-forward layer.
        hidden_act: Activation of the feed-forward layer: gelu (exact, by erf), gelu_new (tanh), relu or silu.
        layer_types: Mixer of each block, from `LAYER_TYPES`; `None` repeats `DEFAULT_LAYER_TYPES`.
        chunk_size: Tokens per chunk in the chunked form of linear attention.
        short_conv: Number of tokens that the short convolution before each mixer sees; 0 means no convolution.
        output_gate: Whether the output of the mixers is multiplied by SiLU of a projection of their input.
        use_bias: Whether projections and norms have biases.
        positions: `rope` (rotary, inside the mixers that need positions), `learned` (added to the embeddings) or
            `none`.
        linear_rope: Whether rotary positions also rotate queries and keys of linear attention with a feature map.
            Without it, a model that has no softmax layers, decays or convolutions cannot see the order of tokens.
        rope_theta: Base of the rotary wavelengths.
        max_position_embeddings: Maximum number of tokens per dialogue for learned positions, and N of a Synthesizer.
            Other models have no limit.
        sliding_window: Number of tokens that `sliding_softmax` sees, the current one included.
        taylor_key_dim: Width of query and key of `linear_taylor2`, whose state grows with its square.
        synthesizer_mixture: Components of `synthesizer_mixture`, from `SYNTHESIZER_PARTS`.
        layer_norm_eps: Epsilon of every normalisation.
        initializer_range: Standard deviation of the initial weights.
        termination: `softmax`, or `st` or `nmst` for a separate head that predicts the end of turn
            (`chatbot.model.end_head`).
        termination_epsilon: Minimum share of the remaining probability that an end head moves to the end of turn at
            every token.
        termination_delay: Number of tokens at the start of a turn at which NMST moves no probability to its end.
        layout: Name of the sample layout in `chatbot.text.layouts`.
        context_tokens: Maximum length of the history in tokens; older turns are dropped.
        direction: `forward`, or `backward` for a model trained on reversed dialogues, which ranks replies.
        weight_storage: `float`, or `int8` if the folder stores int8 matrices with a scale per row.
        latent: `gaussian` or `discrete` for a latent variable of each reply (`chatbot.model.latent`), or `none`.
        latent_size: Number of dimensions Z of the latent variable.
        latent_codes: Number K of values that a discrete latent variable can have.
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
    latent: str = "none"
    latent_size: int = 32
    latent_codes: int = 16

    def __post_init__(self, **kwargs):
        if self.layer_types is None:
            self.layer_types = repeat_layer_types(DEFAULT_LAYER_TYPES, self.num_hidden_layers)
        if self.synthesizer_mixture is None:
            self.synthesizer_mixture = ["fact_random", "dot_product"]
        super().__post_init__(**kwargs)

    # `@strict` calls every method whose name begins with validate_.

    def validate_layer_type(self):
        """Check the names of the mixers and how many there are; transformers would check against its own list."""
        unknown = sorted(set(self.layer_types) - set(LAYER_TYPES))
        if unknown:
            raise ValueError(
                f"`layer_types` has unknown names: {', '.join(unknown)}. Known mixers: {', '.join(LAYER_TYPES)}."
            )
        if len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(
                f"`layer_types` names {len(self.layer_types)} layers, but `num_hidden_layers` is"
                f" {self.num_hidden_layers}. Make the two agree."
            )

    def validate_sizes(self):
        """Check that sizes are positive, and that sizes which rotary positions split into pairs are even."""
        for name, most in MAXIMA.items():
            value = getattr(self, name)
            if type(value) is not int or not 1 <= value <= most:
                raise ValueError(
                    f"`{name}` must be a whole number of at least 1 and at most {most}, got {shown(value)}."
                )
        for name in ("rope_theta", "layer_norm_eps", "initializer_range"):
            value = getattr(self, name)
            if (
                not isinstance(value, (int, float))
                or not 0 <= value < inf
                or (value == 0 and name != "initializer_range")
            ):
                raise ValueError(f"`{name}` must be a finite number above 0, got {shown(value)}.")
        for name in ("short_conv", "termination_delay"):
            if type(getattr(self, name)) is not int:
                raise ValueError(f"`{name}` must be a whole number, got {shown(getattr(self, name))}.")
        for name in ("pad_token_id", "bos_token_id", "eos_token_id"):
            value = getattr(self, name)
            if value is not None and (type(value) is not int or not 0 <= value < self.vocab_size):
                raise ValueError(f"`{name}` must be an id below `vocab_size`, got {shown(value)}.")
        if not 0 <= self.short_conv <= MAX_SHORT_CONV or self.short_conv == 1:
            raise ValueError(f"`short_conv` must be 0 (none) or 2 to {MAX_SHORT_CONV}, got {self.short_conv}.")
        epsilon = self.termination_epsilon
        if not isinstance(epsilon, float) or not 0 < epsilon < 1:
            raise ValueError(f"`termination_epsilon` must be above 0 and below 1, got {shown(epsilon)}.")
        if self.termination_delay < 0:
            raise ValueError(f"`termination_delay` must be at least 0, got {self.termination_delay}.")
        if self.positions == "rope" and (self.head_dim % 2 or self.taylor_key_dim % 2):
            raise ValueError(
                "`head_dim` and `taylor_key_dim` must be even for rotary positions (`positions`: rope), got"
                f" {self.head_dim} and {self.taylor_key_dim}."
            )

    def validate_choices(self):
        """Check that names are known."""
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"`{name}` must be one of {', '.join(allowed)}, got {getattr(self, name)!r}.")
        if self.latent != "none" and (self.termination, self.layout, self.direction) != (
            "softmax",
            "dialogpt",
            "forward",
        ):
            raise ValueError("`latent` needs `termination` softmax, `layout` dialogpt and `direction` forward.")
        unknown = sorted(set(self.synthesizer_mixture) - set(SYNTHESIZER_PARTS))
        if unknown or not self.synthesizer_mixture:
            raise ValueError(
                f"`synthesizer_mixture` must be a non-empty list from {', '.join(SYNTHESIZER_PARTS)},"
                f" got {self.synthesizer_mixture}."
            )


AutoConfig.register(XianliaoConfig.model_type, XianliaoConfig, exist_ok=True)
