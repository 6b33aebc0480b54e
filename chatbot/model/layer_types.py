"""Names of the mixers that a layer can have, as `layer_types` lists them, and the maximum sizes of a model.

`chatbot.model.attention` implements the mixers. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

LAYER_TYPES = {
    "linear_gated": "linear attention with a decay per head, computed from the token",
    "linear_decay": "linear attention with a fixed decay per head",
    "gated_delta": "the gated delta rule",
    "linear_elu1": "linear attention with a denominator and the feature map elu + 1",
    "linear_softmax_feat": "linear attention with a denominator and a softmax over the features",
    "linear_efficient": "Efficient attention in a causal form",
    "linear_taylor1": "linear attention with a denominator and the feature map 1 + cosine",
    "linear_taylor2": "linear attention with a denominator and the second Taylor polynomial of exp",
    "softmax": "softmax attention over all earlier tokens",
    "sliding_softmax": "softmax attention over a window of recent tokens",
    "synthesizer_dense": "attention weights computed from the token alone",
    "synthesizer_random": "trained attention weights that do not depend on the tokens",
    "synthesizer_fixed_random": "random attention weights that are not trained",
    "synthesizer_fact_dense": "synthesizer_dense as a product of two short rows",
    "synthesizer_fact_random": "synthesizer_random as a product of two thin matrices",
    "synthesizer_mixture": "a mixture of the synthesizers, optionally with the q.k of softmax attention",
}

DEFAULT_LAYER_TYPES = ("linear_elu1", "sliding_softmax")
"""Pattern that is repeated over the layers of a new model: with the output gate and the short convolution it was the
best mixer in the comparison of docs/experiments/mixers.md."""


MAX_LAYERS = 256
"""Maximum number of layers of a model."""

MAXIMA = {
    **{"vocab_size": 1 << 21, "hidden_size": 1 << 16, "num_hidden_layers": MAX_LAYERS, "num_attention_heads": 1 << 10},
    **{"head_dim": 1 << 10, "intermediate_size": 1 << 20, "chunk_size": 1 << 12, "max_position_embeddings": 1 << 24},
    **{"sliding_window": 1 << 16, "taylor_key_dim": 1 << 7, "context_tokens": 1 << 24},
    **{"latent_size": 1 << 10, "latent_codes": 1 << 10},
}
"""Settings that must be whole numbers of at least 1, with their maximum."""

MAX_SHORT_CONV = 1 << 8


def repeat_layer_types(pattern: Sequence[str], num_layers: int) -> list[str]:
    """Return the mixer of each layer: the pattern repeated until it covers `num_layers` layers."""
    if not isinstance(num_layers, int) or not 1 <= num_layers <= MAX_LAYERS:
        return list(pattern)  # the validation of the config reports the wrong number
    return list(islice(cycle(pattern), num_layers))
