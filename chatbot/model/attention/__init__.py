"""Token mixers, one file each. `build_mixer` maps a name in `layer_types` to its module.

Every mixer has forms that agree: the definition (naive, the reference in tests), the parallel or chunked form for
training and prefill, and the step for decoding.

    linear.py       linear_elu1, linear_softmax_feat, linear_taylor1, linear_taylor2 (feature map and denominator),
                    linear_decay, linear_gated (forgetting, norm per head); all through recurrence.py
    efficient.py    linear_efficient: keys normalised over the past, per channel
    delta.py        gated_delta: a state that overwrites
    softmax.py      softmax, sliding_softmax
    synthesizer.py  synthesizer_dense, _random, _fixed_random, _fact_dense, _fact_random, _mixture
    fused.py        Triton kernels for CUDA;  convolution.py  the short convolution that any mixer can have before it
"""

from __future__ import annotations

from chatbot.model.attention.delta import GatedDeltaRule
from chatbot.model.attention.experimental.efficient import EfficientAttention
from chatbot.model.attention.experimental.synthesizer import LOGITS, Synthesizer
from chatbot.model.attention.linear import FEATURE_MAPS, DecayedAttention, FeatureMapAttention
from chatbot.model.attention.mixer import Mixer
from chatbot.model.attention.softmax import SoftmaxAttention
from chatbot.model.config import XianliaoConfig

MIXERS = {
    **{f"linear_{name}": lambda config, name=name: FeatureMapAttention(config, name) for name in FEATURE_MAPS},
    "linear_efficient": EfficientAttention,
    "linear_decay": lambda config: DecayedAttention(config, decay="fixed"),
    "linear_gated": lambda config: DecayedAttention(config, decay="data"),
    "gated_delta": GatedDeltaRule,
    "softmax": SoftmaxAttention,
    "sliding_softmax": lambda config: SoftmaxAttention(config, config.sliding_window),
    **{f"synthesizer_{kind}": lambda config, kind=kind: Synthesizer(config, kind) for kind in [*LOGITS, "mixture"]},
}


def build_mixer(config: XianliaoConfig, layer_index: int) -> Mixer:
    """The mixer of one layer, from `config.layer_types`."""
    return MIXERS[config.layer_types[layer_index]](config)
