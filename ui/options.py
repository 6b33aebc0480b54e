"""Options of a server."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ui.studio.options import StudioOptions


def default_data_dir() -> Path:
    """Return the folder for feedback: $XDG_DATA_HOME/xianliao, or ~/.local/share/xianliao."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "xianliao"


def is_json_log(log_format: str) -> bool:
    """Whether the server's log lines are JSON: with `json`, and with `auto` if stderr is not a terminal."""
    return log_format == "json" or (log_format == "auto" and not sys.stderr.isatty())


@dataclass(frozen=True)
class ServeOptions:
    """Options of `xianliao-serve`.

    Attributes:
        auth: (user, password) pairs that may open the page, and /v1 and /metrics by HTTP basic authentication. If it is
            empty, everyone may open the page.
        api_keys: Keys for /v1 and /metrics. If both `api_keys` and `auth` are empty, no key is needed.
        data_dir: Folder of feedback.jsonl.
        feedback: Whether likes and dislikes are recorded.
        saved_chats: Whether browsers keep conversations (in their own storage, never on the server).
        hosts: Names, besides loopback names and numeric addresses, that the Host header of a request may have.
        allow_origins: Origins (`https://app.example.com`) of web applications that may call /v1 from a browser.
        rate_limit: Requests per minute of one key, user or address; 0 for no limit.
        body_bytes: Largest request body of a client with valid credentials.
        anonymous_body_bytes: Largest request body of any other client.
        arriving_bytes: Maximum size of all request bodies together that are arriving, or whose answer has not begun.
        body_seconds: Time in which a request body must arrive, in seconds.
        max_rows: Maximum number of replies per checkpoint that are decoded at the same time.
        log_text: Whether messages and replies are logged.
        studio: Options of the training view; None leaves it out. With the view, the server answers its own machine only.
    """

    auth: tuple[tuple[str, str], ...] = ()
    api_keys: tuple[str, ...] = ()
    data_dir: Path = field(default_factory=default_data_dir)
    feedback: bool = True
    saved_chats: bool = True
    hosts: tuple[str, ...] = ()
    allow_origins: tuple[str, ...] = ()
    rate_limit: int = 0
    body_bytes: int = 4 * 2**20
    anonymous_body_bytes: int = 3 * 2**20
    arriving_bytes: int = 64 * 2**20
    body_seconds: float = 30
    max_rows: int = 64
    log_text: bool = False
    studio: StudioOptions | None = None
