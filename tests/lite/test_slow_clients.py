"""Clients that are slow, or many, take a bounded number of threads for a bounded time."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from http.client import HTTPConnection

import pytest
from xianliao_lite import connections
from xianliao_lite import server as lite_server
from xianliao_lite.server import Server

from tests.lite.test_server import Echo

ASKED = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\n"
    b"Content-Type: application/json\r\nContent-Length: 9\r\n\r\n"
)


@contextmanager
def running():
    server = Server(Echo(), port=0)
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    try:
        yield server.server_address
    finally:
        server.shutdown()
        server.server_close()


def health(address: tuple[str, int]) -> tuple[int, str | None]:
    connection = HTTPConnection(*address, timeout=10)
    try:
        connection.request("GET", "/health", headers={"Host": "localhost"})
        answer = connection.getresponse()
        answer.read()
        return answer.status, answer.getheader("Retry-After")
    finally:
        connection.close()


def received(connection: socket.socket) -> bytes:
    return b"".join(iter(lambda: connection.recv(65536), b""))


def test_one_connection_too_many_is_refused_in_words(monkeypatch):
    monkeypatch.setattr(connections, "MAX_CONNECTIONS", 2)
    with running() as address:
        with socket.create_connection(address, 5) as first, socket.create_connection(address, 5) as second:
            first.sendall(b"GET /health")
            second.sendall(b"GET /health")
            assert health(address) == (503, "1")
        assert any(health(address)[0] == 200 or time.sleep(0.01) for _ in range(100))  # both have gone


@pytest.mark.parametrize(
    ("limit", "begin", "status"), [("HEADER", b"GET /health HTTP/1.1\r\n", b""), ("BODY", ASKED, b" 408 ")]
)
def test_bytes_that_drip_in_do_not_extend_the_time(monkeypatch, limit, begin, status):
    monkeypatch.setattr(lite_server, f"{limit}_SECONDS", 0.3)
    with running() as address, socket.create_connection(address, 5) as client:
        started = time.monotonic()
        client.sendall(begin)
        client.settimeout(0.05)
        answer = b""
        while time.monotonic() - started < 5:
            try:
                piece = client.recv(65536)
            except TimeoutError:
                client.sendall(b"x")
                continue
            except ConnectionResetError:  # a byte arrived at the closed connection
                break
            answer += piece
            if not piece:
                break
        assert time.monotonic() - started < 3
        assert (status in answer) if status else answer == b""


def test_the_limit_for_headers_holds_for_each_request_of_a_connection(monkeypatch):
    monkeypatch.setattr(lite_server, "HEADER_SECONDS", 0.5)
    with running() as address, socket.create_connection(address, 5) as client:
        for _ in range(3):
            client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\n")
            answer = b""
            while not answer.endswith(b'{"status": "ok"}'):
                answer += client.recv(65536)
            time.sleep(0.2)
        assert received(client) == b""  # idle for too long


def test_the_loopback_address_of_ipv6_can_be_listened_at():
    if not socket.has_ipv6:
        pytest.skip("This machine has no IPv6.")
    try:
        server = Server(Echo(), "::1", 0)
    except OSError:
        pytest.skip("This machine has no IPv6 loopback address.")
    server.server_close()
    assert server.is_local


@pytest.mark.slow
def test_200_slow_connections_take_no_more_threads_than_allowed_and_leave_in_time(monkeypatch):
    monkeypatch.setattr(lite_server, "HEADER_SECONDS", 3)
    before = threading.active_count()
    with running() as address, ExitStack() as stack:
        started = time.monotonic()
        slow = [stack.enter_context(socket.create_connection(address, 5)) for _ in range(200)]
        for client in slow:
            with suppress(OSError):  # refused already
                client.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: ")
        assert threading.active_count() - before <= connections.MAX_CONNECTIONS + 1
        statuses = []
        while time.monotonic() - started < 10 and 200 not in statuses:
            for client in slow:
                with suppress(OSError):
                    client.sendall(b"x")
            statuses.append(health(address)[0])
            time.sleep(0.1)
        assert statuses[-1] == 200
        assert set(statuses) <= {200, 503}
        assert time.monotonic() - started < 6
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() <= before
