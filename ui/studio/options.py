"""Options of the training view, and the check that a request comes from this machine."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path

from starlette.datastructures import Headers
from starlette.types import Scope

from ui.api.schemas import ApiError
from ui.server.origins import LOOPBACK_NAMES, host_name

FORWARDED = ("forwarded", "via", "x-forwarded-for", "x-forwarded-host", "x-real-ip")
"""Headers that a proxy adds: the client may be on another machine."""


@dataclass(frozen=True)
class StudioOptions:
    """Options of the training view.

    Attributes:
        folder: Folder that the operator named. Its files can be chosen; results are written below it.
        checkpoint: Checkpoint that is fine-tuned, as on the command line.
        device: Device for training and for chatting with the result.
        dtype: Number type for chatting with the result.
    """

    folder: Path
    checkpoint: str = "default"
    device: str = "auto"
    dtype: str = "auto"


def check_local(scope: Scope, headers: Headers) -> None:
    """Refuse a request to a server with the training view that is not from this machine, or that a proxy passed on.

    Raises:
        ApiError: 403.
    """
    client = (scope.get("client") or ("",))[0]
    name = host_name(headers.get("host", "")) or ""
    is_direct = not any(header in headers for header in FORWARDED)
    if not (is_direct and _is_loopback(client) and (name in LOOPBACK_NAMES or _is_loopback(name.strip("[]")))):
        raise ApiError(
            403,
            "This server has the training view, which is for its own machine only. Open http://localhost on that machine,"
            " without a proxy.",
            code="local_only",
        )


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False
