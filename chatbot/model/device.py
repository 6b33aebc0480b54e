"""Choice of device and dtype."""

from __future__ import annotations

import torch

from chatbot.errors import XianliaoError

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}


def pick_device(device: str = "auto", dtype: str = "auto") -> tuple[str, torch.dtype]:
    """Return the name of the device and the dtype to use.

    Args:
        device: auto, cpu, cuda or mps; auto prefers cuda, then mps.
        dtype: auto or a key of `DTYPES`; auto is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        XianliaoError: The device is not available, or a name is unknown.
    """
    available = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if device == "auto":
        device = next(name for name in ("cuda", "mps", "cpu") if available[name])
    if not available.get(device, False):
        usable = ", ".join(name for name, is_usable in available.items() if is_usable)
        raise XianliaoError(f"Device {device!r} is not available on this machine. Use auto or one of: {usable}.")
    if dtype != "auto" and dtype not in DTYPES:
        raise XianliaoError(f"Unknown dtype {dtype!r}. Use auto, int8 or one of: {', '.join(DTYPES)}.")
    return device, DTYPES.get(dtype, torch.bfloat16 if device == "cuda" else torch.float32)
