"""flash-linear-attention's Triton kernels (the extra `gpu`) in place of our chunked forms, on CUDA and when installed.

It is looked for only where CUDA is: without a GPU driver the package fails, and importing it breaks transformers' own
fall-backs. Arguments and results are those of the chunked forms.
"""

from __future__ import annotations

from functools import cache
from importlib import import_module
from importlib.util import find_spec

import torch


@cache
def installed() -> bool:
    """Whether flash-linear-attention can be imported and has a device to run on."""
    return torch.cuda.is_available() and find_spec("fla") is not None


def available(x: torch.Tensor) -> bool:
    """Whether the kernels take this tensor."""
    return x.is_cuda and installed()


def gated_sum(q, k, v, log_decay, segment_ids=None, state=None) -> tuple[torch.Tensor, torch.Tensor]:
    """`chatbot.model.attention.recurrence.chunked` through fla's simple GLA."""
    kernel = import_module("fla.ops.simple_gla").chunk_simple_gla
    return _run(kernel, {"q": q, "k": k, "v": v, "g": log_decay.expand(q.shape[:3])}, segment_ids, state, scale=1.0)


def gated_delta_rule(q, k, v, log_decay, beta, segment_ids=None, state=None) -> tuple[torch.Tensor, torch.Tensor]:
    """`chatbot.model.attention.delta.chunked` through fla's gated delta rule."""
    kernel = import_module("fla.ops.gated_delta_rule").chunk_gated_delta_rule
    inputs = {"q": q, "k": k, "v": v, "g": log_decay, "beta": beta}
    return _run(kernel, inputs, segment_ids, state, scale=1.0)


def _run(kernel, inputs: dict[str, torch.Tensor], segment_ids, state, **options):
    """Calls a kernel; packed rows become one row with the bounds of its dialogues."""
    dtype = inputs["v"].dtype
    inputs = {name: x.float() if name == "g" else x.to(dtype) for name, x in inputs.items()}
    if segment_ids is None:
        return kernel(**inputs, initial_state=state, output_final_state=True, **options)
    batch, length = segment_ids.shape
    starts = torch.ones_like(segment_ids, dtype=torch.bool)
    starts[:, 1:] = segment_ids[:, 1:] != segment_ids[:, :-1]
    begins = starts.flatten().nonzero().flatten()
    bounds = torch.cat([begins, begins.new_tensor([batch * length])])
    firsts = begins // length  # the row of each dialogue
    initial = None
    if state is not None:  # only the first dialogue of a row continues a state
        initial = state.new_zeros(len(begins), *state.shape[1:])
        continues = begins % length == 0
        initial[continues] = state[firsts[continues]]
    flat = {name: x.flatten(0, 1)[None] for name, x in inputs.items()}
    output, last = kernel(**flat, initial_state=initial, output_final_state=True, cu_seqlens=bounds, **options)
    lasts = starts.sum(1).cumsum(0) - 1
    return output[0].unflatten(0, (batch, length)), last[lasts]
