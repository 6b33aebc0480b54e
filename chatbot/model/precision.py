"""The precision that sums are kept in."""

from __future__ import annotations

import torch


def at_least_float(x: torch.Tensor) -> torch.Tensor:
    """`x` in fp32, or as it is where that is fp64: sums need more than half precision, tests need all there is."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
