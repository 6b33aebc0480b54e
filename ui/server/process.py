"""The server process: HTTP with a time limit for headers, and an end within seconds."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Mapping
from types import FrameType

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatbot.chat.worker import Worker
from ui.server.logs import log_event

DRAIN_SECONDS = 2
"""How long replies under way may go on when the server is told to end."""

HEADER_SECONDS = 15
"""How long the headers of a request may take, from the connection or the end of the request before."""


class Protocol(H11Protocol):
    """HTTP that does not wait for ever for the headers of a request.

    uvicorn's own clock runs between requests and stops with the first byte of the next one; this one runs from there.
    """

    _waiting: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._watch()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch()

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_watch()
        super().connection_lost(exc)

    def _watch(self) -> None:
        """The clock goes on where headers are still missing: more bytes of them do not set it back."""
        if self.conn.their_state is not h11.IDLE:
            self._stop_watch()
        elif self._waiting is None:
            self._waiting = self.loop.call_later(HEADER_SECONDS, self._give_up)

    def _stop_watch(self) -> None:
        if self._waiting is not None:
            self._waiting.cancel()
            self._waiting = None

    def _give_up(self) -> None:
        if self.conn.their_state is h11.IDLE:
            self.transport.close()


class Server(uvicorn.Server):
    """Ends with exit code 0 on SIGTERM and SIGINT, within seconds, whatever is still open.

    First new requests get 503 and replies under way may go on; then those left get an error in words; then streams that
    never end, such as those of open tabs, are cut off.
    """

    def __init__(self, app: FastAPI):
        self._limits, self._workers = app.state.limits, app.state.workers
        config = uvicorn.Config(
            app,
            http=Protocol,
            loop="asyncio",
            ws="none",
            log_config=None,
            access_log=False,
            log_level="error",
            timeout_graceful_shutdown=1,
        )
        super().__init__(config)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        self.should_exit = True  # and no more: uvicorn would raise the signal again when all is done

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        self._limits.closing = True
        log_event("closing")
        await drain(self._workers)
        logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)  # tasks are cancelled now, as is meant
        await super().shutdown(sockets)


async def drain(workers: Mapping[str, Worker]) -> None:
    """Lets replies under way end for a while; those that have not get an error."""
    closing = [asyncio.to_thread(worker.close, DRAIN_SECONDS) for worker in workers.values()]
    await asyncio.wait([asyncio.ensure_future(each) for each in closing], timeout=DRAIN_SECONDS + 0.5)
