"""Bounds on the connections of the server.

At most `MAX_CONNECTIONS` connections are open, with one thread each; further ones get 503. The headers of a request must
arrive within `HEADER_SECONDS` and its body within `BODY_SECONDS`, however often the client sends a byte.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections import deque
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

MAX_CONNECTIONS, REFUSED_SECONDS = 64, 1
"""Open connections, and seconds for which a further one stays open after its refusal."""
HEADER_SECONDS, BODY_SECONDS, SEND_SECONDS = 15, 30, 10
"""Time limits for the headers of a request (an idle connection waits for them), for its body, and for a client that does
not read the reply."""
FULL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b"Content-Length: %d\r\n\r\n%b"
)


def fault(text: str) -> dict[str, Any]:
    """Return the JSON body of a refusal."""
    return {"error": {"message": text, "type": "invalid_request_error", "param": None, "code": None}}


class Arriving(socket.SocketIO):
    """Bytes of a connection; a read that would end after `deadline`, in seconds of the monotonic clock, fails."""

    deadline = 0.0

    def __init__(self, connection: socket.socket):
        super().__init__(connection, "r")
        self._connection = connection

    def readinto(self, buffer: Any) -> int | None:
        """Read what has arrived.

        Raises:
            TimeoutError: The deadline has passed.
        """
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self._connection.settimeout(left)
        try:
            return super().readinto(buffer)
        finally:
            self._connection.settimeout(SEND_SECONDS)


class BoundedServer(ThreadingHTTPServer):
    """A server with a thread for each connection, and a bound on them."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, host: str, port: int, handler: type[BaseHTTPRequestHandler]):
        self.address_family = socket.AF_INET6 if ":" in host else socket.AF_INET
        super().__init__((host, port), handler)
        self._free = threading.BoundedSemaphore(MAX_CONNECTIONS)
        self._refused: deque[tuple[float, socket.socket]] = deque()

    def process_request(self, request: Any, client_address: Any) -> None:
        """Handle a connection in a new thread, or refuse it if too many are open."""
        if not self._free.acquire(blocking=False):
            self._refuse(request)
            return
        try:
            super().process_request(request, client_address)
        except BaseException:  # no thread was started
            self._free.release()
            raise

    def process_request_thread(self, request: Any, client_address: Any) -> None:
        """Handle a connection until it ends."""
        try:
            super().process_request_thread(request, client_address)
        finally:
            self._free.release()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Print an error of the server, and nothing about a connection that broke."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handle_error(request, client_address)

    def service_actions(self) -> None:
        """Close refused connections that have had time to read the answer; called at least twice per second."""
        while self._refused and (
            len(self._refused) > MAX_CONNECTIONS or time.monotonic() - self._refused[0][0] > REFUSED_SECONDS
        ):
            self._refused.popleft()[1].close()

    def server_close(self) -> None:
        """Close the socket of the server and the refused connections."""
        super().server_close()
        while self._refused:
            self._refused.popleft()[1].close()

    def _refuse(self, connection: socket.socket) -> None:
        """Answer 503 without waiting for the client, and close the connection a little later, so that it can read this."""
        body = json.dumps(fault("Too many connections are open. Try again in a moment.")).encode()
        with suppress(OSError):
            connection.setblocking(False)
            connection.send(FULL % (len(body), body))
            connection.shutdown(socket.SHUT_WR)
        self._refused.append((time.monotonic(), connection))
