"""Names of the mixers that a layer can have; `chatbot.model.attention` holds what they name. Needs no torch."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import cycle, islice

LAYER_TYPES = {
    "linear_gated": "linear attention with a decay per head, computed from the token",
    "linear_decay": "linear attention with a fixed decay per head",
    "gated_delta": "the gated delta rule",
    "linear_elu1": "linear attention with a denominator, feature map elu + 1",
    "linear_softmax_feat": "the same, softmax over the features",
    "linear_efficient": "Efficient attention in its causal form",
    "linear_taylor1": "the same as linear_elu1 with 1 + cosine",
    "linear_taylor2": "the same with the second Taylor polynomial of exp",
    "softmax": "softmax attention over everything before",
    "sliding_softmax": "softmax attention over the last tokens",
    "synthesizer_dense": "weights computed from the token alone",
    "synthesizer_random": "trained weights that look at no token",
    "synthesizer_fixed_random": "random weights, not trained",
    "synthesizer_fact_dense": "dense as a product of two short rows",
    "synthesizer_fact_random": "random as a product of two thin matrices",
    "synthesizer_mixture": "a mixture of the above, or of them and softmax attention's q.k",
}

DEFAULT_LAYER_TYPES = ("linear_elu1", "sliding_softmax")
"""Repeated over the layers; with the output gate and the short convolution the choice of the bake-off, see
chatbot/model/attention/README.md."""


def repeat_layer_types(pattern: Sequence[str], num_layers: int) -> list[str]:
    """The mixer of each layer: the pattern again and again."""
    if not isinstance(num_layers, int) or num_layers < 1:
        return list(pattern)  # the config's own check says what is wrong with the number
    return list(islice(cycle(pattern), num_layers))
