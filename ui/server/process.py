"""The server process: HTTP with a time limit for headers, and a shutdown within seconds."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import re
import socket
import sys
from collections.abc import Mapping
from functools import partial
from types import FrameType
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatbot.chat.worker import Worker
from ui.connections import Connections, Listener, address_of, most_connections
from ui.server.logs import FAILURES, log_event

DRAIN_SECONDS = 2
"""Time in which replies that are being decoded may end after a signal."""

READ_BYTES = 32 * 1024
"""Number of bytes that are read from one connection before the others have their turn. While many large bodies arrive, this
number decides how long a small request waits."""

HEADER_SECONDS = 15
"""Time limit for the headers of a request, from the connection or the end of the request before."""

SEND_SECONDS = 60
"""Time in which a client must read some of an answer that is too large for the buffers of the connection (it must read
48 KiB), and in which it must read the rest of the last answer; until then, the server holds it in memory."""

HEADER_BYTES = 16 * 1024
"""Size limit of the headers of a request, and of the line before a chunk."""

MAX_HEADER_LINES = 100
"""Number of lines of the headers of a request. Browsers send about 20; each one costs microseconds and memory."""

FREE_CHUNKS, CHUNK_BYTES = 64, 64
"""A chunked body may have `FREE_CHUNKS` chunks of any size; if it has more, their mean size must be at least `CHUNK_BYTES`.
Reading a chunk costs the event loop about 10 microseconds, however small the chunk is."""


_EMPTY_LINE = re.compile(rb"\n\r?\n")
LARGE_ALLOCATION_BYTES, ARENAS = 2**20, 2


def return_memory() -> None:
    """Make the C library return the memory of large bodies to the system (glibc only; elsewhere nothing happens).

    By default glibc learns from a large allocation that is freed to keep the next ones, and every thread has its own
    arena, so without this call a server would keep its peak size.
    """
    if sys.platform == "linux":
        with contextlib.suppress(OSError, AttributeError):
            library = ctypes.CDLL("libc.so.6")
            library.mallopt(-3, LARGE_ALLOCATION_BYTES)  # M_MMAP_THRESHOLD
            library.mallopt(-8, ARENAS)  # M_ARENA_MAX


class Connection(h11.Connection):
    """Parser of a connection that refuses bodies in tiny chunks and requests with many headers."""

    _chunks = _bytes = 0

    def next_event(self) -> Any:
        """Return the next event.

        Raises:
            h11.RemoteProtocolError: The request is invalid, its chunks are too small, or it has too many headers.
        """
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._chunks = self._bytes = 0
            if len(event.headers) > MAX_HEADER_LINES:  # of a request that came together with the one before
                raise h11.RemoteProtocolError("too-many-headers")
        elif isinstance(event, h11.Data):
            self._chunks += event.chunk_start
            self._bytes += len(event.data)
            if self._chunks > max(FREE_CHUNKS, self._bytes / CHUNK_BYTES):
                raise h11.RemoteProtocolError("tiny-chunks")  # the client is told uvicorn's own words
        return event


class Protocol(H11Protocol):
    """HTTP protocol with time limits for the headers of a request and for a client that does not read, and the parser above.

    uvicorn's own timer runs between requests and stops at the first byte of the next one; this timer starts there.
    """

    _timer: asyncio.TimerHandle | None = None
    _send_timer: asyncio.TimerHandle | None = None
    _close_timer: asyncio.TimerHandle | None = None
    _lines = 0
    _last = b""

    def __init__(self, *arguments: Any, open_connections: Connections, **named: Any):
        super().__init__(*arguments, **named)
        self._open_connections = open_connections
        self.conn = Connection(h11.SERVER, HEADER_BYTES)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as in uvicorn
        """Start the timer."""
        transport.max_size = READ_BYTES  # type: ignore[attr-defined]  # asyncio's transports read 256 KiB
        super().connection_made(transport)
        self._update_timer()

    def data_received(self, data: bytes) -> None:
        """Stop the timer when the headers are complete; refuse headers of too many lines before they are parsed."""
        if self.conn.their_state is h11.IDLE and self._has_too_many_lines(data):
            self.send_400_response("Too many header lines.")
            self._update_timer()
            return
        super().data_received(data)
        self._update_timer()

    def _has_too_many_lines(self, data: bytes) -> bool:
        """Whether the headers of the request that arrives have more than `MAX_HEADER_LINES` lines so far."""
        seen = self._last + data  # the empty line after the headers may arrive in two parts
        end = _EMPTY_LINE.search(seen)
        self._lines += data.count(b"\n") if end is None else seen.count(b"\n", len(self._last), end.start())
        too_many = self._lines > MAX_HEADER_LINES
        if end is not None:
            self._lines, self._last = 0, b""
        else:
            self._last = seen[-3:]
        return too_many

    def on_response_complete(self) -> None:
        """Start the timer for the headers of the next request."""
        super().on_response_complete()
        self._update_timer()

    def abort(self) -> None:
        """Close the connection at once."""
        self.transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the timers."""
        self._open_connections.forget(self)
        self._open_connections.read_again(self)
        self._stop_timer()
        self._stop_send_timer()
        if self._close_timer is not None:
            self._close_timer.cancel()
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        """Start the timer of a client that does not read."""
        super().pause_writing()
        self._open_connections.stop_reading(self)
        self._stop_send_timer()
        self._send_timer = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def resume_writing(self) -> None:
        """Stop that timer, because the client reads."""
        self._stop_send_timer()
        self._open_connections.read_again(self)
        super().resume_writing()

    def send_400_response(self, msg: str) -> None:
        """Refuse a request that is not HTTP; if its answer has begun already, only close the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            super().send_400_response(msg)
        else:
            self.transport.close()
        self._end_in_time()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection without a further request, as uvicorn does."""
        super().timeout_keep_alive_handler()
        if self.transport.is_closing():
            self._end_in_time()

    def _end_in_time(self) -> None:
        """Close the connection at once if the client does not read the rest of the last answer within `SEND_SECONDS`.

        asyncio would wait for a client that never reads.
        """
        self._open_connections.end(self)
        if self._close_timer is None:
            self._close_timer = self.loop.call_later(SEND_SECONDS, self.transport.abort)

    def _update_timer(self) -> None:
        """Run the timer while headers are incomplete; more bytes do not reset it."""
        state = self.conn.their_state
        if self.transport.is_closing():
            self._end_in_time()
        elif state is h11.IDLE:
            self._open_connections.wait(self, address_of(self.client))
        elif state is h11.SEND_BODY:
            self._open_connections.send(self)
        else:
            self._open_connections.forget(self)
        if state is not h11.IDLE:
            self._stop_timer()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _stop_send_timer(self) -> None:
        if self._send_timer is not None:
            self._send_timer.cancel()
            self._send_timer = None

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()
            self._end_in_time()


class Server(uvicorn.Server):
    """uvicorn server that ends with exit code 0 within seconds of SIGTERM or SIGINT, even with open connections.

    First new requests get 503 and replies that are being decoded may end. Then the remaining replies end with an error
    message. Then streams that never end, such as those of open tabs, are closed.

    Args:
        app: Application of `create_app`.
    """

    def __init__(self, app: FastAPI):
        self._limits, self._workers = app.state.limits, app.state.workers
        self.connections = Connections(most_connections())
        config = uvicorn.Config(
            app,
            http=partial(Protocol, open_connections=self.connections),  # type: ignore[arg-type]  # called like a class
            loop="asyncio",
            backlog=self.connections.per_turn,
            ws="none",
            log_config=None,
            access_log=False,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Begin the shutdown. uvicorn's own handler would raise the signal again at the end."""
        self.should_exit = True

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start to accept connections, at most as many as the process can have."""
        await super().startup([Listener(each, self.connections) for each in sockets or ()] or None)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Refuse new requests, let replies end, then close all connections."""
        self._limits.closing = True
        self._limits.refused_lines.finish()
        FAILURES.finish()
        log_event("closing")
        await drain(self._workers)
        self._limits.pool.close()  # before uvicorn cancels the waiting requests, which would get no error message then
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # cancelling tasks is intended here
        await super().shutdown(sockets)


async def drain(workers: Mapping[str, Worker]) -> None:
    """Give the replies that are being decoded `DRAIN_SECONDS` to end; the others get an error."""
    closing = [asyncio.to_thread(worker.close, DRAIN_SECONDS) for worker in workers.values()]
    await asyncio.wait([asyncio.ensure_future(call) for call in closing], timeout=DRAIN_SECONDS + 0.5)
