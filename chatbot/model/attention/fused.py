"""Triton kernels of flash-linear-attention (the extra `gpu`), used on CUDA instead of our chunked forms.

The package is imported only where CUDA is available: without a GPU driver the import fails and breaks transformers' own
fallbacks. Arguments and results are those of the chunked forms.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch

from chatbot.model.attention.tokens import dialogue_starts


@cache
def installed() -> bool:
    """Return whether flash-linear-attention is installed and a CUDA device is available."""
    return torch.cuda.is_available() and find_spec("fla") is not None


def available(x: torch.Tensor) -> bool:
    """Return whether the kernels accept this tensor."""
    return x.is_cuda and installed()


def gated_sum(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `chatbot.model.attention.recurrence.chunked` with fla's simple GLA."""
    kernel = import_module("fla.ops.simple_gla").chunk_simple_gla
    return _run(kernel, {"q": q, "k": k, "v": v, "g": log_decay.expand(q.shape[:3])}, segment_ids, state)


def gated_delta_rule(
    q: torch.Tensor,
    k: torch.Tensor,
    v: torch.Tensor,
    log_decay: torch.Tensor,
    beta: torch.Tensor,
    segment_ids: torch.Tensor | None = None,
    state: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `chatbot.model.attention.delta.chunked` with fla's gated delta rule."""
    kernel = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    inputs = {"q": q, "k": k, "v": v, "g": log_decay, "beta": beta}
    return _run(kernel, inputs, segment_ids, state)


def _run(
    kernel: Callable[..., tuple[torch.Tensor, torch.Tensor]],
    inputs: dict[str, torch.Tensor],
    segment_ids: torch.Tensor | None,
    state: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Call a kernel; packed rows are passed as one row with the boundaries of its dialogues."""
    dtype = inputs["v"].dtype
    inputs = {name: x.float() if name == "g" else x.to(dtype) for name, x in inputs.items()}
    if segment_ids is None:
        return kernel(**inputs, initial_state=state, output_final_state=True, scale=1.0)
    batch, length = segment_ids.shape
    starts = dialogue_starts(segment_ids)
    begins = starts.flatten().nonzero().flatten()
    bounds = torch.cat([begins, begins.new_tensor([batch * length])])
    initial = None
    if state is not None:  # only the first dialogue of a row continues a state
        initial = state.new_zeros(len(begins), *state.shape[1:])
        continues = begins % length == 0
        initial[continues] = state[begins[continues] // length]
    flat = {name: x.flatten(0, 1)[None] for name, x in inputs.items()}
    output, last = kernel(**flat, initial_state=initial, output_final_state=True, scale=1.0, cu_seqlens=bounds)
    last_of_row = starts.sum(1).cumsum(0) - 1
    return output[0].unflatten(0, (batch, length)), last[last_of_row]
