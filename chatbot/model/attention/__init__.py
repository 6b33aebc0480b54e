"""Token mixers, one file per family. `build_mixer` maps a name in `layer_types` to its module.

Every mixer has forms that compute the same function: the definition (naive; the reference in tests), the parallel or
chunked form for training and prefill, and the step for decoding.

    tokens.py       description of a batch: padding, packed dialogues, positions
    mixer.py        projections in and out, output gate, rotary positions;  convolution.py  the short convolution
    linear.py       linear_elu1, linear_softmax_feat, linear_taylor1, linear_taylor2 (feature map and denominator),
                    linear_decay, linear_gated (decay and norm per head); all through recurrence.py
    delta.py        gated_delta: a state in which a key overwrites its old value
    softmax.py      softmax, sliding_softmax
    fused.py        Triton kernels for CUDA
    experimental/   efficient.py    linear_efficient: keys normalised over the past, per channel
                    synthesizer.py  synthesizer_dense, _random, _fixed_random, _fact_dense, _fact_random, _mixture
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from chatbot.model.attention.delta import GatedDeltaRule
from chatbot.model.attention.experimental.efficient import EfficientAttention
from chatbot.model.attention.experimental.synthesizer import LOGITS, Synthesizer
from chatbot.model.attention.linear import FEATURE_MAPS, DecayedAttention, FeatureMapAttention
from chatbot.model.attention.mixer import Mixer
from chatbot.model.attention.softmax import SoftmaxAttention
from chatbot.model.config import XianliaoConfig


def _sliding(config: XianliaoConfig) -> Mixer:
    return SoftmaxAttention(config, config.sliding_window)


MIXERS: dict[str, Callable[[XianliaoConfig], Mixer]] = {
    "linear_efficient": EfficientAttention,
    "linear_decay": partial(DecayedAttention, decay="fixed"),
    "linear_gated": partial(DecayedAttention, decay="data"),
    "gated_delta": GatedDeltaRule,
    "softmax": SoftmaxAttention,
    "sliding_softmax": _sliding,
}
for _name in FEATURE_MAPS:
    MIXERS[f"linear_{_name}"] = partial(FeatureMapAttention, feature_map=_name)
for _name in (*LOGITS, "mixture"):
    MIXERS[f"synthesizer_{_name}"] = partial(Synthesizer, kind=_name)


def build_mixer(config: XianliaoConfig, layer_index: int) -> Mixer:
    """Return a new mixer for one layer, chosen by `config.layer_types`."""
    assert config.layer_types is not None  # XianliaoConfig.__post_init__ fills it in
    return MIXERS[config.layer_types[layer_index]](config)
