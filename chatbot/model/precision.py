"""Precision of sums and states."""

from __future__ import annotations

import torch


def at_least_float(x: torch.Tensor) -> torch.Tensor:
    """Return `x` in fp32, or unchanged if it is fp64.

    Sums over time need more than half precision. fp64 stays fp64, because tests compare the forms of a mixer in fp64.
    """
    return x.to(torch.promote_types(x.dtype, torch.float32))
