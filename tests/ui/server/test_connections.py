"""Open connections: however many wait, a new client gets its answer, and requests in progress are not closed."""

from __future__ import annotations

import contextlib
import errno
import re
import selectors
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ui.connections import Connections
from ui.server.process import MAX_HEADER_LINES

ROOT = Path(__file__).resolve().parents[3]
FILES = 256
SERVER = f"""
import resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, ({FILES}, {FILES}))
from fastapi import FastAPI
from types import SimpleNamespace
import asyncio
from ui.cli import listen
from ui.connections import raise_file_limit
from ui.server.process import Server
raise_file_limit()
app = FastAPI()
limits = SimpleNamespace(refused_lines=None, pool=None)
app.state.limits, app.state.workers = limits, {{}}

@app.get("/healthz")
async def health():
    return {{"status": "ok"}}

@app.get("/large/{{size}}")
async def large(size: int):
    return "x" * size

@app.get("/slow")
async def slow():
    await asyncio.sleep(4)
    return {{"status": "slow"}}

listener = listen("127.0.0.1", 0)
print(listener.getsockname()[1], flush=True)
server = Server(app)
print(server.connections.most, flush=True)
server.run(sockets=[listener])
"""


class Idle:
    """A connection that records whether it was closed."""

    is_closed = False

    def abort(self) -> None:
        self.is_closed = True


def test_the_oldest_waiting_connection_of_an_address_is_closed_and_requests_are_not():
    connections = Connections(8)
    many, other = [Idle() for _ in range(5)], Idle()
    connections.wait(other, "b")
    for one in many[:4]:
        connections.wait(one, "a")
    connections.forget(many[0])  # its request is complete
    connections.wait(many[4], "a")
    assert not any(one.is_closed for one in many)
    connections.wait(many[0], "a")
    assert [one.is_closed for one in many] == [False, True, False, False, False]
    assert connections.make_room()
    assert other.is_closed  # it has waited longest


def test_a_body_that_is_not_complete_is_closed_only_if_no_connection_waits():
    connections, body, idle = Connections(8), Idle(), Idle()
    connections.wait(body, "a")
    connections.send(body)
    connections.wait(idle, "a")
    assert connections.make_room()
    assert (idle.is_closed, body.is_closed) == (True, False)
    assert connections.make_room()
    assert body.is_closed
    assert not connections.make_room()


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit of open files")
def test_a_new_client_is_answered_beside_more_idle_connections_than_files():
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    stop = threading.Event()
    try:
        port, most = (int(process.stdout.readline()) for _ in range(2))
        assert 16 <= most < FILES - 32
        while get(port, "/healthz", patient=True) is None:
            time.sleep(0.1)
        answers: list[str | None] = []
        request = threading.Thread(target=lambda: answers.append(get(port, "/slow")))
        request.start()
        time.sleep(0.3)
        reopened: list[int] = []
        idle = threading.Thread(target=hold, args=(port, FILES + 64, stop, reopened))
        idle.start()
        for _ in range(6):
            time.sleep(0.4)
            started = time.monotonic()
            assert get(port, "/healthz") == '{"status":"ok"}'
            assert time.monotonic() - started < 1
        assert reopened
        request.join(10)
        assert answers == ['{"status":"slow"}']  # a request in progress is not closed
    finally:
        stop.set()
        process.kill()
        _, errors = process.communicate()
    assert not re.search(r"system resource|Traceback", errors), errors[-2000:]


def get(port: int, path: str, patient: bool = False) -> str | None:
    """The body of an answer; None if a patient caller reaches no server."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(f"GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n".encode())
            answer = b""
            while part := client.recv(4096):
                answer += part
    except ConnectionRefusedError:
        if patient:
            return None
        raise
    return answer.partition(b"\r\n\r\n")[2].decode()


def hold(port: int, count: int, stop: threading.Event, reopened: list[int]) -> None:
    """Hold `count` idle connections, and open a new one for each that is closed."""
    with selectors.DefaultSelector() as selector:

        def open_one() -> None:
            client = socket.socket()
            client.setblocking(False)
            assert client.connect_ex(("127.0.0.1", port)) in (0, errno.EINPROGRESS)
            selector.register(client, selectors.EVENT_READ)

        for _ in range(count):
            open_one()
        while not stop.is_set():
            time.sleep(0.05)  # this thread and the measured one share a processor
            for key, _ in selector.select(0.1):
                try:
                    ended = key.fileobj.recv(10) == b""
                except BlockingIOError:
                    continue
                except OSError:
                    ended = True
                if ended:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
                    reopened.append(1)
                    if not stop.is_set():
                        open_one()
        for key in list(selector.get_map().values()):
            key.fileobj.close()


def test_a_connection_that_only_waits_for_its_client_to_read_is_closed_first():
    connections = Connections(64)
    ending, unread, waiting, body = (Idle() for _ in range(4))
    connections.wait(waiting, "a")
    connections.send(body)
    connections.stop_reading(unread)
    connections.forget(unread)  # it has sent another request
    connections.end(ending)
    for expected in (ending, unread, waiting, body):
        assert connections.make_room()
        assert expected.is_closed
    connections.stop_reading(unread)
    connections.read_again(unread)
    assert not connections.make_room()


def test_a_quarter_of_the_connections_may_have_incomplete_bodies():
    connections, bodies = Connections(16), [Idle() for _ in range(6)]
    for body in bodies:
        connections.send(body)
    assert [body.is_closed for body in bodies] == [True, True, False, False, False, False]


@pytest.mark.skipif(sys.platform != "linux", reason="the sizes of the system's buffers differ")
@pytest.mark.parametrize("first", [66_000, 150_000])
def test_clients_that_do_not_read_the_end_of_their_answers_keep_nobody_out(server, first):
    """asyncio waits for such a client without a limit when it closes a connection, and a minute while it sends."""
    port, most = server
    clients = []
    try:
        half = most // 2 - 4  # an address may have half of the connections waiting
        for count in (half, half, *[1] * (most - 2 * half + 4)):
            new = [client_that_reads_little(port) for _ in range(count)]
            clients += new
            for size, last in (
                (first, b""),
                (51_000, b"Connection: close\r\n"),
            ):  # the first fills the system's buffers
                for client in new:
                    with contextlib.suppress(OSError):  # the server may have closed it already
                        client.sendall(b"GET /large/%d HTTP/1.1\r\nHost: localhost\r\n%s\r\n" % (size, last))
                time.sleep(1 if count > 1 else 0.2)
        for _ in range(5):
            assert get(port, "/healthz") == '{"status":"ok"}'
    finally:
        for client in clients:
            client.close()


def client_that_reads_little(port: int) -> socket.socket:
    """A client for which the system stores few bytes."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2304)
    client.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    client.settimeout(5)
    client.connect(("127.0.0.1", port))
    return client


def test_headers_of_many_lines_are_refused_before_they_are_parsed(server):
    port, _ = server
    lines = b"".join(b"a: %d\r\n" % number for number in range(2 * MAX_HEADER_LINES))
    for parts in ([lines + b"\r\n"], [lines[:400], lines[400:], b"\r\n"]):
        assert b" 400 " in exchange(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n", *parts)
    first = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n"
    pipelined = exchange(
        port, first + b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + lines + b"\r\n", to_the_end=True
    )
    assert [b" 200 " in pipelined, b" 400 " in pipelined] == [True, True]
    few = b"".join(b"a: %d\r\n" % number for number in range(MAX_HEADER_LINES - 10))
    assert b" 200 " in exchange(port, b"GET /healthz HTTP/1.1\r\nHost: localhost\r\n" + few, b"\r", b"\n")
    body = b"\n" * 5_000  # lines of a body are not lines of headers, wherever the parts are divided
    head = b"POST /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5000\r\n"
    for parts in ([head + b"\r\n" + body], [head, b"\r\n" + body], [head + b"\r", b"\n" + body]):
        assert b" 405 " in exchange(port, *parts)


def exchange(port: int, *parts: bytes, to_the_end: bool = False) -> bytes:
    """The beginning of the answer to a request that is sent in parts, or what the server sends until it closes."""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
        client.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for part in parts:
            with contextlib.suppress(OSError):  # the server may have refused it already
                client.sendall(part)
            time.sleep(0.1)
        answer = b""
        with contextlib.suppress(ConnectionResetError):
            while part := client.recv(4096):
                answer += part
                if not to_the_end:
                    break
    return answer


@pytest.fixture
def server():
    """A server with few files; yields its port and its maximum number of connections."""
    process = subprocess.Popen(
        [sys.executable, "-c", SERVER], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        port, most = (int(process.stdout.readline()) for _ in range(2))
        while get(port, "/healthz", patient=True) is None:
            time.sleep(0.1)
        yield port, most
    finally:
        process.kill()
        _, errors = process.communicate()
    assert not re.search(r"system resource|Traceback", errors), errors[-2000:]
