"""A client that asks and does not read is disconnected, so that the server does not hold its answers forever."""

from __future__ import annotations

import socket
import time

import pytest


def connect(server, buffer_bytes: int, path: str = "/v1/models") -> tuple[socket.socket, bytes]:
    """Return a connection with a small buffer, and a request for it."""
    address = server[0].removeprefix("http://")
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    client.settimeout(10)
    client.connect(("127.0.0.1", int(address.rpartition(":")[2])))
    return client, f"GET {path} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer secret\r\n\r\n".encode()


def test_a_client_that_does_not_read_is_disconnected(server, monkeypatch):
    monkeypatch.setattr("ui.server.process.SEND_SECONDS", 0.3)
    client, request = connect(server, 4096, "/openapi.json")  # large answers fill the buffers with few requests

    def ask() -> None:
        while True:  # until all buffers are full; after that, until the server closes the connection
            client.sendall(request * 100)

    with client, pytest.raises(ConnectionError):
        ask()


def test_a_client_that_pauses_and_reads_on_gets_all_its_answers(server, monkeypatch):
    monkeypatch.setattr("ui.server.process.SEND_SECONDS", 5)
    client, request = connect(server, 4096)
    client.setblocking(False)
    sent = received = 0
    with client:
        while sent < 200_000:
            try:
                sent += client.send(request * 100)
            except BlockingIOError:
                break
            time.sleep(0.01)
        rest = request[sent % len(request) :] if sent % len(request) else b""
        time.sleep(0.5)
        client.settimeout(10)
        answers = b""
        while answers.count(b'"object":"list"') < sent // len(request):
            answers += client.recv(65536)
        client.sendall(rest)
        received = answers.count(b"HTTP/1.1 200")
    assert received >= sent // len(request) > 100
