"""Hostile and broken clients by the dozen against one server: python -m tests.attack.hostile

Prints, for each kind of client, the latency of /healthz meanwhile and the growth of the server's memory, and ends with exit
code 1 if a goal is missed. Run it on a machine that does nothing else: the clients run beside the server, and other work
counts as its latency.
"""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
CLIENTS = 64
SECONDS = 12.0
PAUSE_SECONDS = 0.02
MAX_P99_MILLISECONDS, MAX_GROWTH_MEGABYTES = 100, 300
"""Goals of /healthz and of resident memory above that of the idle server, beside `CLIENTS` clients of each kind."""
COMPLETE, JOIN = "/v1/chat/completions", "/gradio_api/queue/join"


@dataclass(frozen=True)
class Address:
    """Where the server listens, and the number of the page's function `answer`."""

    host: str
    port: int
    answer: int


def head(method: str, path: str, length: int | None = None, more: str = "") -> bytes:
    """Return the head of a request."""
    size = "" if length is None else f"Content-Length: {length}\r\nContent-Type: application/json\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{size}{more}\r\n".encode()


async def exchange(server: Address, request: bytes, read_bytes: int = 1 << 20) -> bytes:
    """Send a request on a connection of its own and return what is answered before the server or `read_bytes` end it."""
    reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read(read_bytes)
    finally:
        writer.close()


@cache
def huge(shape: int) -> bytes:
    """Return a body of about 3 MB: faults, one message, or many messages."""
    content = [
        [{"role": "user", "content": [{}] * 60}] * 12_000,
        [{"role": "user", "content": "长" * 1_000_000}],
        [{"role": "user", "content": "哈" * 5_000}] * 190,
    ][shape]
    return json.dumps({"messages": content}, ensure_ascii=False, separators=(",", ":")).encode()


@cache
def big(function: int) -> bytes:
    """Return the call of a page's function with a conversation of 1.4 MB and 3,801 messages, of a session NAME."""
    messages = [{"role": ("user", "assistant")[i % 2], "text": "聊天" * 60} for i in range(3_801)]
    chat = {"id": "", "title": "", "persona": [], "messages": messages}
    call = {"data": [chat, None, 1, 0.8, 0.9], "fn_index": function, "session_hash": "NAME"}
    return json.dumps(call, ensure_ascii=False).encode()


async def huge_body(server: Address, number: int) -> None:
    """Send a body of 3 MB."""
    body = huge(number % 3)
    await exchange(server, head("POST", COMPLETE, len(body), "Connection: close\r\n") + body)


async def slow_headers(server: Address, number: int) -> None:
    """Send a header letter by letter."""
    _reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        for letter in head("GET", "/healthz", None, f"X: {number}\r\n"):
            writer.write(bytes([letter]))
            await writer.drain()
            await asyncio.sleep(0.5)
    finally:
        writer.close()


async def slow_body(server: Address, number: int) -> None:
    """Promise 3 MB, send 100 kB of them and then a byte now and then."""
    _reader, writer = await asyncio.open_connection(server.host, server.port)
    try:
        writer.write(head("POST", COMPLETE, 3_000_000) + b" " * 100_000)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.5)
    finally:
        writer.close()


async def vanishing(server: Address, number: int) -> None:
    """Leave in the middle of eight streamed replies."""
    request = {"messages": [{"role": "user", "content": "讲个故事"}], "stream": True, "n": 8, "seed": number}
    body = json.dumps(request).encode()
    await exchange(server, head("POST", COMPLETE, len(body)) + body, 600)


async def big_chat(server: Address, number: int) -> None:
    """Ask the page to answer in a conversation of 1.4 MB, and do not read the results."""
    body = big(server.answer).replace(b"NAME", b"big%d" % number)
    await exchange(server, head("POST", JOIN, len(body), "Connection: close\r\n") + body)


KINDS: dict[str, Callable[[Address, int], Awaitable[None]]] = {
    "huge bodies": huge_body,
    "slow headers": slow_headers,
    "slow bodies": slow_body,
    "vanishing in a stream": vanishing,
    "big chats": big_chat,
}


@dataclass(frozen=True)
class Finding:
    """What one kind of client did to the server.

    Attributes:
        p50: Median of the latency of /healthz in milliseconds.
        p99: Its 99th percentile.
        largest: Its maximum.
        requests: Number of measurements.
        rounds: Number of times that a client did its worst.
        growth: Largest resident memory of the server above that of the idle server, in MB.
    """

    p50: float
    p99: float
    largest: float
    requests: int
    rounds: int
    growth: float


def resident_mb(pid: int) -> float:
    """Return the resident memory of a process in MB."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS"):
            return int(line.split()[1]) / 1000
    raise AssertionError("no VmRSS")


async def attack_with(server: Address, kind: str, seconds: float) -> int:
    """Let `CLIENTS` clients of a kind do their worst, and return how often they did it."""
    rounds, until = [0], time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(max(0.1, until - time.monotonic())):
                    await KINDS[kind](server, number)
            except (OSError, TimeoutError):
                pass
            rounds[0] += 1
            await asyncio.sleep(0.05)

    await asyncio.gather(*map(client, range(CLIENTS)))
    return rounds[0]


async def measure(server: Address, pid: int, until: Callable[[], bool]) -> tuple[list[float], float]:
    """Return latencies of /healthz in milliseconds, and the largest resident memory of the server in MB."""
    latencies, largest = [], 0.0
    health = head("GET", "/healthz")
    reader, writer = await asyncio.open_connection(server.host, server.port)
    while not until():
        began = time.perf_counter()
        writer.write(health)
        answer = await reader.readuntil(b"}")
        latencies.append(1000 * (time.perf_counter() - began))
        assert b" 200 " in answer[:20]
        largest = max(largest, resident_mb(pid))
        await asyncio.sleep(PAUSE_SECONDS)
    writer.close()
    return latencies, largest


def find(server: Address, pid: int, idle: float, kind: str | None, seconds: float) -> Finding:
    """Measure while clients of a kind, which run in a process of their own, attack; None: while there are none."""
    attacking = f"print(asyncio.run(h.attack_with(h.{server!r}, {kind!r}, {seconds})))"
    code = f"import asyncio; from tests.attack import hostile as h; {attacking}"
    command = [sys.executable, "-c", code if kind else f"import time; time.sleep({seconds}); print(0)"]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as clients:
        latencies, largest = asyncio.run(measure(server, pid, lambda: clients.poll() is not None))
        assert clients.returncode == 0
        assert clients.stdout is not None
        rounds = int(clients.stdout.read())
    p50, p99 = np.percentile(latencies, [50, 99])
    return Finding(float(p50), float(p99), max(latencies), len(latencies), rounds, largest - idle)


def attack(kinds: dict = KINDS, seconds: float = SECONDS, folder: Path | None = None) -> dict[str, Finding]:
    """Start a server as a user would, attack it with each kind of client, and return what each did."""
    from tests.ui.serving import serving  # imports torch, which a process of clients would wait for

    folder = folder or Path(tempfile.mkdtemp())
    with serving(folder, "--data-dir", str(folder / "data")) as (address, process):
        config = json.load(urlopen(f"{address}/config"))
        answer = next(part["id"] for part in config["dependencies"] if part["api_name"] == "answer")
        parts = urlsplit(address)
        server = Address(str(parts.hostname), int(parts.port or 80), answer)
        asyncio.run(vanishing(server, 0))  # a first reply, whose memory every server needs
        time.sleep(2)
        idle = resident_mb(process.pid)
        findings = {"no clients": find(server, process.pid, idle, None, seconds / 2)}
        for kind in kinds:
            findings[kind] = find(server, process.pid, idle, kind, seconds)
            time.sleep(1)
        assert process.poll() is None
    log = (folder / "stderr").read_text()
    assert "Traceback" not in log, log[-3000:]
    return findings


def table(findings: dict[str, Finding]) -> str:
    """Return the findings as a table."""
    lines = [
        f"| {CLIENTS} clients | rounds | /healthz p50, p99, max (ms) of | memory + MB |",
        "|---|---|---|---|",
    ]
    for kind, finding in findings.items():
        latency = f"{finding.p50:.1f}, {finding.p99:.0f}, {finding.largest:.0f} of {finding.requests}"
        lines.append(f"| {kind} | {finding.rounds} | {latency} | {finding.growth:.0f} |")
    return "\n".join(lines)


def missed(findings: dict[str, Finding]) -> list[str]:
    """Return the goals that were missed, in words."""
    lines = []
    for kind, finding in findings.items():
        if finding.p99 > MAX_P99_MILLISECONDS:
            lines.append(f"{kind}: /healthz p99 is {finding.p99:.0f} ms, the goal is {MAX_P99_MILLISECONDS} ms")
        if finding.growth > MAX_GROWTH_MEGABYTES:
            lines.append(f"{kind}: memory grew by {finding.growth:.0f} MB, the goal is {MAX_GROWTH_MEGABYTES} MB")
    return lines


if __name__ == "__main__":
    findings = attack()
    print(table(findings), *missed(findings), sep="\n")
    sys.exit(bool(missed(findings)))
