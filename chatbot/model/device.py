"""Choice of device and dtype. Checks that do not need torch run without importing it."""

from __future__ import annotations

import sys
from difflib import get_close_matches
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from chatbot.errors import XianliaoError

if TYPE_CHECKING:
    import torch

DEVICES = ("cuda", "mps", "cpu")
DTYPES = ("float32", "float16", "bfloat16")
_GPU_FILES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg", "/dev/nvhost-gpu", "/dev/nvmap")
"""Device files of GPU drivers on Linux: NVIDIA, AMD, Windows Subsystem for Linux, Tegra."""


def check_device(device: str = "auto", dtype: str = "auto") -> None:
    """Check the names of a device and a dtype as far as that is possible without importing torch, which takes seconds.

    Raises:
        XianliaoError: A name is unknown, or this machine certainly has no such device.
    """
    if device != "auto":
        _check_device(device, [name for name in DEVICES if _is_possible(name)])
    if dtype != "int8":
        _check_dtype(dtype)


def pick_device(device: str = "auto", dtype: str = "auto") -> tuple[str, torch.dtype]:
    """Return the name of the device and the dtype to use.

    Args:
        device: auto, cpu, cuda or mps; auto prefers cuda, then mps.
        dtype: auto or one of `DTYPES`; auto is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        XianliaoError: The device is not available, or a name is unknown.
    """
    import torch

    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    usable = [name for name in DEVICES if available[name]]
    device = usable[0] if device == "auto" else device
    _check_device(device, usable)
    _check_dtype(dtype)
    default = "bfloat16" if device == "cuda" else "float32"
    return device, getattr(torch, default if dtype == "auto" else dtype)


def _is_possible(device: str) -> bool:
    """Whether this machine may have the device; False only if it certainly does not have it."""
    if device == "mps":
        return sys.platform == "darwin"
    if device == "cuda":
        has_driver = sys.platform != "linux" or any(Path(file).exists() for file in _GPU_FILES)
        return sys.platform != "darwin" and has_driver and not version("torch").endswith("+cpu")
    return True


def _check_device(device: str, usable: list[str]) -> None:
    if device not in usable:
        raise XianliaoError(
            f"Device {device!r} is not available on this machine. Use auto or one of: {', '.join(usable)}."
        )


def _check_dtype(dtype: str) -> None:
    if dtype == "auto" or dtype in DTYPES:
        return
    near = get_close_matches(dtype, DTYPES, 1)
    advice = f"Did you mean {near[0]}?" if near else f"Use auto, int8 or one of: {', '.join(DTYPES)}."
    raise XianliaoError(f"Unknown dtype {dtype!r}. {advice}")
