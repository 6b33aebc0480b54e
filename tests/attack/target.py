"""Server that is attacked, and a row of the table of attacks."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import httpx

from tests.attack.hostile import resident_mb
from tests.conftest import ROOT
from tests.ui.serving import serving

COMPLETE, JOIN, DATA = "/v1/chat/completions", "/gradio_api/queue/join", "/gradio_api/queue/data"
KEY, USER = {"Authorization": "Bearer key-for-figures"}, ("ann", "a-password-for-figures")
FOREIGN = ("http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example", "ftp://localhost")
HOSTS = ("evil.example", "localhost.evil.example", "chat.lan", "a@b", "127.0.0.1.nip.io", "", "localhost, evil.example")
PROBES = ROOT / "chatbot" / "evaluation" / "probes"


@dataclass
class Row:
    """One promise.

    Attributes:
        name: The promise.
        attempts: Number of attempts.
        failures: What failed.
    """

    name: str
    attempts: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, holds: bool, attempt: object) -> None:
        """Count an attempt, and what it was if the promise did not hold."""
        self.attempts += 1
        if not holds:
            self.failures.append(str(attempt)[:200])


class Target:
    """A server that is attacked.

    Attributes:
        client: Client without credentials.
        functions: Functions of the page.
    """

    def __init__(self, address: str, process: subprocess.Popen, folder: Path):
        self.address, self.process, self.folder = address, process, folder
        self.client = httpx.Client(base_url=address, timeout=60)
        self.functions = []

    def ask(self, text: str, **more: object) -> httpx.Response:
        """Send a message to the API."""
        return self.client.post(COMPLETE, json={"messages": [{"role": "user", "content": text}], **more})

    def resident(self) -> float:
        """Return the server's memory in MB."""
        return resident_mb(self.process.pid)


@contextmanager
def target(folder: Path, name: str, *arguments: str) -> Iterator[Target]:
    """A server with its own folders."""
    server_folder = folder / name
    (server_folder / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"], before = str(server_folder / "tmp"), os.environ.get("TMPDIR")
    try:
        with serving(server_folder, "--data-dir", str(server_folder / "data"), *arguments) as (address, process):
            yield Target(address, process, server_folder)
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)
