"""Open connections: however many wait, a new client gets its answer, and requests in progress are not closed."""

from __future__ import annotations

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
