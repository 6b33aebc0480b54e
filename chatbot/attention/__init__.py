"""Token mixers, one file each. `build_mixer` maps a name in `layer_types` to its module.

Every mixer has three forms that agree: the definition (naive, the reference in tests), the chunked form for training and
prefill, and the step with a fixed-size state for decoding.
"""

from __future__ import annotations

from torch import nn

from chatbot.attention.linear import LinearAttention
from chatbot.configuration import XianliaoConfig

MIXERS = {
    "linear_decay": lambda config: LinearAttention(config, decay="fixed"),
    "linear_gated": lambda config: LinearAttention(config, decay="data"),
}


def build_mixer(config: XianliaoConfig, layer_index: int) -> nn.Module:
    """The mixer of one layer, from `config.layer_types`."""
    return MIXERS[config.layer_types[layer_index]](config)
