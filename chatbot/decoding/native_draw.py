"""The draw of the next token in C, for the settings that chats have; `chatbot.decoding.loop` draws for the others."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from chatbot.decoding.candidates import Candidates
from chatbot.decoding.settings import ReplySettings
from chatbot.native.library import call, library


def can_draw(logits: torch.Tensor, settings: ReplySettings) -> bool:
    """Whether `draw` can choose among these logits."""
    plain = settings.method == "sample" and not settings.top_k and settings.typical_p == 1 and settings.min_p == 0
    return plain and logits.device.type == "cpu" and library() is not None


def draw(
    found: Candidates, settings: ReplySettings, end_id: int, uniform: Sequence[float]
) -> tuple[list[int], list[bool], list[float]]:
    """Draws a token for each of B rows from numbers in [0, 1): temperature, EOS floor, nucleus, EOS first.

    Returns:
        The tokens, whether each is EOS by the floor alone, and their log-probabilities under the model's own distribution.
    """
    rows, size = found.allowed.shape
    left = torch.ones(rows, dtype=torch.float64)
    if found.floor is not None:
        left = ((found.emitted - found.floor.start_tokens).clamp_min(0) * found.floor.log_keep).double().exp()
    options = torch.tensor([settings.temperature, settings.top_p], dtype=torch.float64)
    numbers = torch.tensor(uniform, dtype=torch.float64)
    tokens, by_floor = torch.empty(2, rows, dtype=torch.int64)
    log_probs = torch.empty(rows, dtype=torch.float64)
    tensors = (
        found.allowed.contiguous(),
        found.ruled.contiguous(),
        options,
        left,
        numbers,
        tokens,
        by_floor,
        log_probs,
    )
    if call("xianliao_draw", tensors, (rows, size, end_id, settings.keep_eos)):
        raise MemoryError("There is no memory left to choose a token.")
    return tokens.tolist(), [value != 0 for value in by_floor.tolist()], log_probs.tolist()
