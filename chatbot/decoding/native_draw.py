"""Sampling of the next token by the compiled library, for the usual settings; see `chatbot.decoding.sampler`."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import torch

from chatbot.decoding.candidates import Candidates
from chatbot.decoding.rules.truncation import ConsistentTopP, truncation
from chatbot.decoding.settings import ReplySettings
from chatbot.native.library import call, library


def can_draw(logits: torch.Tensor, settings: ReplySettings) -> bool:
    """Whether `draw` supports these settings, on this device."""
    return logits.device.type == "cpu" and _is_nucleus(settings) and library() is not None


@lru_cache(256)
def _is_nucleus(settings: ReplySettings) -> bool:
    """Whether the settings ask for sampling, with no truncation other than the nucleus."""
    return settings.method == "sample" and all(isinstance(rule, ConsistentTopP) for rule in truncation(settings, 0))


def draw(
    candidates: Candidates, settings: ReplySettings, end_id: int, uniform: Sequence[float]
) -> tuple[list[int], list[bool], list[float]]:
    """Sample a token for each of B rows, with temperature, EOS floor and nucleus; EOS is first in the inverse CDF.

    Args:
        candidates: Candidates of the rows.
        settings: Settings for which `can_draw` is true.
        end_id: Id of the end of turn.
        uniform: One random number in [0, 1) per row.

    Returns:
        Tokens, whether each one is EOS only because of the floor, and log-probabilities under the model's distribution.
    """
    rows, size = candidates.allowed.shape
    rest = torch.ones(rows, dtype=torch.float64)  # 1 - f(t)
    if candidates.floor is not None:
        rest = candidates.floor.log_rest(candidates.emitted).double().exp()
    options = torch.tensor([settings.temperature, settings.top_p], dtype=torch.float64)
    numbers = torch.tensor(uniform, dtype=torch.float64)
    tokens, by_floor = torch.empty(2, rows, dtype=torch.int64)
    log_probs = torch.empty(rows, dtype=torch.float64)
    tensors = (
        candidates.allowed.contiguous(),
        candidates.ruled.contiguous(),
        options,
        rest,
        numbers,
        tokens,
        by_floor,
        log_probs,
    )
    if call("xianliao_draw", tensors, (rows, size, end_id, settings.keep_eos)):
        raise MemoryError("Out of memory while sampling a token.")
    return tokens.tolist(), [value != 0 for value in by_floor.tolist()], log_probs.tolist()
