"""What whoever runs the server chooses."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path


def default_data_dir() -> Path:
    """Where the server keeps what people leave with it: $XDG_DATA_HOME/xianliao, or ~/.local/share/xianliao."""
    base = os.environ.get("XDG_DATA_HOME")
    return (Path(base) if base else Path.home() / ".local" / "share") / "xianliao"


@dataclass(frozen=True)
class ServeOptions:
    """Choices of `xianliao-serve`.

    Attributes:
        auth: (user, password) pairs that may open the page; empty lets everybody in. They open /v1 and /metrics too, as
            HTTP basic authentication.
        api_keys: What clients of /v1 and /metrics have to send, one of them; empty, and without `auth`, asks for nothing.
        data_dir: Folder for feedback.jsonl.
        feedback: Whether likes and dislikes are written down.
        saved_chats: Whether browsers keep conversations (in their own storage, never on the server).
        hosts: Names, besides loopback names and numeric addresses, that requests may have in their Host header.
        allow_origins: Origins (`https://app.example.com`) of web applications that may call /v1 from a browser.
        rate_limit: Requests a minute that a key, a user or an address may send; 0 counts nothing.
        body_bytes: Largest body of a request.
        body_seconds: Longest time a request may take to arrive.
        log_text: Whether the log shows what was said.
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
    body_seconds: float = 30
    log_text: bool = False
