"""Bounds on open connections: however many clients connect and wait, a new client is accepted at once.

A process that has as many open files as the system allows accepts nothing for a second. So the server has fewer
connections than that, and at the bound it closes the one that has waited longest without a complete request.
"""

from __future__ import annotations

import errno
import os
import socket
import sys
from collections import defaultdict
from contextlib import suppress
from itertools import islice
from typing import Any, Protocol
from weakref import WeakSet

if sys.platform != "win32":
    import resource

MOST_FILES, MOST_CONNECTIONS = 2**16, 2**13
"""The limit of open files that a server asks the system for, and the maximum number of its connections."""

RESERVED_FILES = 64
"""Number of files that the process may open beside its connections after the start."""

FEWEST_CONNECTIONS = 16
"""Number of connections that a server has even if the limit of open files is too low for them."""

WAITING = 1024
"""Number of new connections that wait in the system for their turn; the system may have a lower bound."""

REFUSAL = (
    b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 1\r\nConnection: close\r\nContent-Type: application/json\r\n"
    b'Content-Length: 79\r\n\r\n{"error": {"message": "Too many connections are open. Try again in a moment."}}'
)
EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


def raise_file_limit() -> None:
    """Raise the limit of open files to what the system allows this process, at most `MOST_FILES`."""
    if sys.platform == "win32":
        return
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    for wanted in (MOST_FILES, 10_240):  # macOS allows 10,240 even if it names no limit
        wanted = wanted if most == resource.RLIM_INFINITY else min(wanted, most)
        if limit != resource.RLIM_INFINITY and limit < wanted:
            with suppress(ValueError, OSError):
                resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, most))
                return


def most_connections() -> int:
    """Return the number of connections for which the limit of open files has room, beside the files that are open now."""
    if sys.platform == "win32":  # the limit is on memory
        return MOST_CONNECTIONS
    limit, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if limit == resource.RLIM_INFINITY:
        return MOST_CONNECTIONS
    try:
        used = len(os.listdir("/dev/fd"))
    except OSError:
        used = RESERVED_FILES
    return min(MOST_CONNECTIONS, max(FEWEST_CONNECTIONS, limit - used - RESERVED_FILES))


class Closable(Protocol):
    """A connection that can be closed at once."""

    def abort(self) -> None:
        """Close the connection."""


class Connections:
    """The open connections of a server, and which of them have not sent a complete request.

    Connections without complete headers wait, and one address may have half of the bound waiting: behind a proxy, all
    connections have one address, and those with a request in progress do not count. If all clients together reach the
    bound, connections are closed, the oldest first: those that only wait for their client to read the end of an answer
    (they are closing), then those whose client has stopped reading, then those that wait for a request, then those whose
    body is not complete. A quarter of the bound may have incomplete bodies.

    Args:
        most: Maximum number of open connections.
    """

    def __init__(self, most: int):
        self.most, self.per_turn = most, max(1, min(128, most // 16))
        self.sockets: WeakSet[Accepted] = WeakSet()
        self._waiting: dict[Closable, str] = {}  # with its address, the longest wait first
        self._of_address: defaultdict[str, dict[Closable, None]] = defaultdict(dict)
        self._sending: dict[Closable, None] = {}
        self._unread: dict[Closable, None] = {}
        self._closing: dict[Closable, None] = {}

    @property
    def is_full(self) -> bool:
        """Whether no further connection may be accepted."""
        return len(self.sockets) >= self.most

    def wait(self, connection: Closable, address: str) -> None:
        """Note that a connection has no request in progress; if too many of its address wait, close the oldest."""
        if connection in self._waiting:
            return
        self.forget(connection)
        self._waiting[connection] = address
        of_address = self._of_address[address]
        of_address[connection] = None
        if len(of_address) > max(1, self.most // 2):
            self._close(next(iter(of_address)))

    def send(self, connection: Closable) -> None:
        """Note that the headers of a request are complete and its body is not; if too many are so, close the oldest."""
        if connection not in self._sending:
            self.forget(connection)
            self._sending[connection] = None
            if len(self._sending) > max(1, self.most // 4):
                self._close(next(iter(self._sending)))

    def stop_reading(self, connection: Closable) -> None:
        """Note that the client does not read an answer that is being sent."""
        self._unread[connection] = None

    def read_again(self, connection: Closable) -> None:
        """Note that the client reads again, or that the connection is closed."""
        self._unread.pop(connection, None)

    def end(self, connection: Closable) -> None:
        """Note that a connection will be closed as soon as its client has read the rest of the last answer."""
        if connection not in self._closing:
            self.forget(connection)
            self._closing[connection] = None

    def forget(self, connection: Closable) -> None:
        """Note that a connection has a complete request, or is closed; whether its client reads remains noted."""
        self._sending.pop(connection, None)
        self._closing.pop(connection, None)
        address = self._waiting.pop(connection, None)
        if address is not None:
            self._of_address[address].pop(connection, None)
            if not self._of_address[address]:
                del self._of_address[address]

    def make_room(self) -> bool:
        """Close the oldest connections that have no complete request in progress; return whether there was one."""
        many = (self._closing, self._unread, self._waiting)
        oldest = next((list(islice(group, self.per_turn)) for group in many if group), list(islice(self._sending, 1)))
        for connection in oldest:
            self._close(connection)
        return bool(oldest)

    def _close(self, connection: Closable) -> None:
        self.forget(connection)
        self.read_again(connection)
        connection.abort()


class Accepted(socket.socket):
    """Socket of an accepted connection, counted until it is closed."""

    connections: Connections

    def close(self) -> None:
        """Close the socket."""
        self.connections.sockets.discard(self)
        super().close()


class Listener(socket.socket):
    """A listening socket that accepts no more connections than `Connections` allows.

    Args:
        listener: Socket that is bound to an address; it stays open.
        connections: Connections that were accepted.
    """

    def __init__(self, listener: socket.socket, connections: Connections):
        super().__init__(listener.family, listener.type, listener.proto, listener.dup().detach())
        self._connections = connections

    def listen(self, backlog: int = WAITING, /) -> None:
        """Listen. asyncio gives the number of connections that it accepts in one turn, but more may wait."""
        super().listen(max(backlog, WAITING))

    def accept(self) -> tuple[socket.socket, Any]:
        """Accept a connection.

        Raises:
            BlockingIOError: No client waits, or older connections must be closed first. Their sockets close in the next
                turn of the event loop, in which this is called again.
        """
        if self._connections.is_full:
            if not self._connections.make_room():
                self._refuse()
            raise BlockingIOError
        try:
            accepted, address = super().accept()
        except OSError as error:
            if error.errno in EXHAUSTED and self._connections.make_room():
                raise BlockingIOError from None
            raise
        counted = Accepted(accepted.family, accepted.type, accepted.proto, accepted.detach())
        counted.connections = self._connections
        self._connections.sockets.add(counted)
        return counted, address

    def _refuse(self) -> None:
        """Answer 503: all connections have complete requests."""
        refused, _ = super().accept()
        with refused, suppress(OSError):
            refused.setblocking(False)
            refused.send(REFUSAL)


def address_of(client: tuple[str, int] | None) -> str:
    """Return the address for which connections are counted: the network of 64 bits for IPv6."""
    host = "" if client is None else client[0]
    if ":" not in host:
        return host
    with suppress(OSError):
        return socket.inet_pton(socket.AF_INET6, host.partition("%")[0])[:8].hex()
    return host
