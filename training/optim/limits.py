"""Upper bounds of the settings of a run, far above the usual values: settings can come from somebody else.

They are checked before memory is allocated. This module does not import torch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from chatbot.errors import shown
from chatbot.model.layer_types import MAX_SHORT_CONV
from chatbot.model.layer_types import MAXIMA as MODEL_MAXIMA

MAX_COUNT = 10**9
"""Maximum of settings that count steps, epochs or dialogues, which need no memory."""

MAX_BATCH_TOKENS = 1 << 24
"""Maximum number of tokens of an optimizer step, padding included; the preset `base` has 2^17."""

MAX_REPLY_TOKENS = 10**6

MAX_WEIGHT = 10**4
"""Maximum weight of a set in --data: an epoch of weight w has w times as many dialogues as the set."""

SHAPE = ("hidden_size", "num_hidden_layers", "num_attention_heads", "head_dim", "intermediate_size")

MAXIMA = {
    **{f"model.{name}": MODEL_MAXIMA[name] for name in (*SHAPE, "max_position_embeddings", "sliding_window")},
    "model.short_conv": MAX_SHORT_CONV,
    **{"row_tokens": 1 << 16, "batch_rows": 1 << 20, "micro_batch_rows": 1 << 20, "lora_rank": 1 << 12},
    **dict.fromkeys(("epochs", "max_steps", "min_steps", "warmup_steps", "latent_training.cycles"), MAX_COUNT),
    **dict.fromkeys(("eval_every", "save_every", "eval_dialogues", "early_stopping_patience"), MAX_COUNT),
    **dict.fromkeys(("termination_delay", "floor_delta"), MAX_REPLY_TOKENS),
    **{name: MODEL_MAXIMA[name] for name in ("latent_size", "latent_codes")},
    "threads": 1 << 16,
}
"""Maximum of every setting that is a whole number, and of the epochs; the seed has its own bounds."""


def size_faults(values: Mapping[str, Any], flag: Callable[[str], str], group: str = "") -> list[str]:
    """Return a fault for each setting above its maximum.

    Args:
        values: Settings by name.
        flag: Function that spells the flag of a setting.
        group: Name of the group of the settings, with a dot at its end.
    """
    return [
        f"{flag(group + name)} must be at most {MAXIMA[group + name]}, far above the usual values, got {shown(value)}"
        for name, value in values.items()
        if group + name in MAXIMA and value is not None and value > MAXIMA[group + name]
    ]


def batch_faults(row_tokens: int, batch_rows: int) -> list[str]:
    """Return a fault if an optimizer step has too many tokens in sizes that are allowed each."""
    tokens = row_tokens * batch_rows
    if tokens <= MAX_BATCH_TOKENS or row_tokens > MAXIMA["row_tokens"] or batch_rows > MAXIMA["batch_rows"]:
        return []
    return [
        f"--row-tokens times --batch-rows gives {tokens} tokens, more than the limit of {MAX_BATCH_TOKENS}, which is far"
        " above the usual values"
    ]
