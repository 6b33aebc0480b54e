"""Choice of device and dtype."""

from __future__ import annotations

import torch

from chatbot.errors import XianliaoError


def pick_device(device: str = "auto", dtype: str = "auto") -> tuple[str, torch.dtype]:
    """The device and dtype to use.

    Raises:
        XianliaoError: The device is not there, or a name is unknown.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device, False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise XianliaoError(f"There is no device {device!r} here; use auto or one of: {there}.")
    dtypes = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
    if dtype != "auto" and dtype not in dtypes:
        raise XianliaoError(f"There is no dtype {dtype!r}; use auto, int8 or one of: {', '.join(dtypes)}.")
    return device, dtypes.get(dtype, torch.bfloat16 if device == "cuda" else torch.float32)
