"""Hostile and broken clients by the dozen against one server: python -m tests.attack.hostile

Prints, for each kind of client, the latency of /healthz meanwhile and the growth of the server's memory.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np

from tests.ui.serving import serving

CLIENTS = 64
SECONDS = 12.0
PAUSE_SECONDS = 0.02
COMPLETE, JOIN = "/v1/chat/completions", "/gradio_api/queue/join"


@dataclass(frozen=True)
class Address:
    """Where the server listens, its process, and the number of the page's function `answer`."""

    host: str
    port: int
    pid: int
    functions: dict[str, int]


def head(method: str, path: str, length: int | None = None, more: str = "") -> bytes:
    """Return the head of a request."""
    size = "" if length is None else f"Content-Length: {length}\r\nContent-Type: application/json\r\n"
    return f"{method} {path} HTTP/1.1\r\nHost: localhost\r\n{size}{more}\r\n".encode()


async def exchange(where: Address, request: bytes, read_bytes: int = 1 << 20) -> bytes:
    """Send a request on a connection of its own and return what is answered before the server or `read_bytes` end it."""
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        writer.write(request)
        await writer.drain()
        return await reader.read(read_bytes)
    finally:
        writer.close()


async def huge_body(where: Address, number: int) -> None:
    """Send a body of 3 MB of faults, of one message, or of many messages."""
    shapes = (
        {"messages": [{"role": "user", "content": [{}] * 60}] * 12_000},
        {"messages": [{"role": "user", "content": "长" * 1_000_000}]},
        {"messages": [{"role": "user", "content": "哈" * 5_000}] * 190},
    )
    body = json.dumps(shapes[number % 3], ensure_ascii=False, separators=(",", ":")).encode()
    await exchange(where, head("POST", COMPLETE, len(body), "Connection: close\r\n") + body)


async def slow_headers(where: Address, number: int) -> None:
    """Send a header letter by letter."""
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        for letter in head("GET", "/healthz", None, f"X: {number}\r\n"):
            writer.write(bytes([letter]))
            await writer.drain()
            await asyncio.sleep(0.5)
    finally:
        writer.close()


async def slow_body(where: Address, number: int) -> None:
    """Promise 3 MB, send 100 kB of them and then a byte now and then."""
    reader, writer = await asyncio.open_connection(where.host, where.port)
    try:
        writer.write(head("POST", COMPLETE, 3_000_000) + b" " * 100_000)
        while True:
            writer.write(b" ")
            await writer.drain()
            await asyncio.sleep(0.5)
    finally:
        writer.close()


async def vanishing(where: Address, number: int) -> None:
    """Leave in the middle of eight streamed replies."""
    request = {"messages": [{"role": "user", "content": "讲个故事"}], "stream": True, "n": 8, "seed": number}
    body = json.dumps(request).encode()
    await exchange(where, head("POST", COMPLETE, len(body)) + body, 600)


async def big_chat(where: Address, number: int) -> None:
    """Ask the page to answer in a conversation of 1.4 MB, and do not read the results."""
    messages = [{"role": ("user", "assistant")[i % 2], "text": "聊天" * 60} for i in range(3_801)]
    chat = {"id": "", "title": "", "persona": [], "messages": messages}
    data = [chat, None, number, 0.8, 0.9]
    call = {"data": data, "fn_index": where.functions["answer"], "session_hash": f"big{number}"}
    body = json.dumps(call, ensure_ascii=False).encode()
    await exchange(where, head("POST", JOIN, len(body), "Connection: close\r\n") + body)


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


async def measure(where: Address, idle: float, kind: str | None, seconds: float = SECONDS) -> Finding:
    """Let `CLIENTS` clients of a kind (None: none) do their worst, and measure /healthz meanwhile."""
    rounds, until = [0], time.monotonic() + seconds

    async def client(number: int) -> None:
        while time.monotonic() < until:
            try:
                async with asyncio.timeout(max(0.1, until - time.monotonic())):
                    await KINDS[kind](where, number)
            except (OSError, TimeoutError):
                pass
            rounds[0] += 1
            await asyncio.sleep(0.05)

    clients = [asyncio.create_task(client(number)) for number in range(CLIENTS if kind else 0)]
    latencies, largest = [], 0.0
    await asyncio.sleep(0.3)
    health = head("GET", "/healthz")
    reader, writer = await asyncio.open_connection(where.host, where.port)
    while time.monotonic() < until:
        began = time.perf_counter()
        writer.write(health)
        answer = await reader.readuntil(b"}")
        latencies.append(1000 * (time.perf_counter() - began))
        assert b" 200 " in answer[:20]
        largest = max(largest, resident_mb(where.pid))
        await asyncio.sleep(PAUSE_SECONDS)
    writer.close()
    await asyncio.gather(*clients)
    p50, p99 = np.percentile(latencies, [50, 99])
    return Finding(p50, p99, max(latencies), len(latencies), rounds[0], largest - idle)


def attack(kinds: dict = KINDS, seconds: float = SECONDS, folder: Path | None = None) -> dict[str, Finding]:
    """Start a server as a user would, attack it with each kind of client, and return what each did."""
    from urllib.request import urlopen

    folder = folder or Path(tempfile.mkdtemp())
    with serving(folder, "--data-dir", str(folder / "data")) as (address, process):
        config = json.load(urlopen(f"{address}/config"))
        functions = {part["api_name"]: part["id"] for part in config["dependencies"]}
        parts = urlsplit(address)
        where = Address(parts.hostname, parts.port, process.pid, functions)
        asyncio.run(vanishing(where, 0))  # a first reply, whose memory every server needs
        time.sleep(2)
        idle = resident_mb(process.pid)
        findings = {"no clients": asyncio.run(measure(where, idle, None, seconds / 2))}
        for kind in kinds:
            findings[kind] = asyncio.run(measure(where, idle, kind, seconds))
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
    for kind, one in findings.items():
        latency = f"{one.p50:.1f}, {one.p99:.0f}, {one.largest:.0f} of {one.requests}"
        lines.append(f"| {kind} | {one.rounds} | {latency} | {one.growth:.0f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table(attack()))
