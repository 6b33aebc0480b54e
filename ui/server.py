"""The server: the page at /, the API at /v1, /healthz and /metrics, all in one process."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from types import FrameType
from typing import Literal

import h11
import uvicorn
from fastapi import FastAPI
from pydantic import BaseModel
from uvicorn.protocols.http.h11_impl import H11Protocol

from chatbot import Chatbot, __version__
from chatbot.chat.bot import Reply
from chatbot.chat.worker import Worker
from chatbot.errors import XianliaoError
from ui.access import Access
from ui.api import add_api
from ui.app import mount_page
from ui.limits import Gate, Limits, RateLimit
from ui.logs import log_event, reply_fields
from ui.metrics import Metrics
from ui.options import ServeOptions
from ui.origins import Origins
from ui.safety import Safety

DRAIN_SECONDS = 2
"""How long replies under way may go on when the server is told to end."""

HEADER_SECONDS = 15
"""How long the headers of a request may take, from the connection or the end of the request before."""


class Health(BaseModel):
    """What /healthz says."""

    status: Literal["ok"]
    checkpoint: str
    version: str


def create_app(
    bots: Chatbot | Sequence[Chatbot], options: ServeOptions | None = None, safety: Safety | None = None
) -> FastAPI:
    """The whole server: the page at /, the API at /v1, /healthz and /metrics beside them.

    Its `state` has `workers` (by checkpoint name), `limits`, and `note_reply`, which the page calls for each of its replies.

    Args:
        bots: Whose replies they are, the default one first; from here on one worker of each decodes for everybody.
        options: None takes the defaults.
        safety: What is kept out and what is answered instead; None takes the files that come along.

    Raises:
        XianliaoError: Two checkpoints have the same name.
    """
    bots = [bots] if isinstance(bots, Chatbot) else list(bots)
    options = ServeOptions() if options is None else options
    safety = Safety.load() if safety is None else safety
    names = [bot.name for bot in bots]
    if twice := [name for name in names if names.count(name) > 1]:
        raise XianliaoError(f"Two checkpoints have the name {twice[0]!r}, so nobody could choose; give each its own.")
    for bot in bots:
        bot.settings = bot.settings.with_changes(banned_words=(*bot.settings.banned_words, *safety.banned_words))
    workers = {bot.name: Worker(bot) for bot in bots}
    metrics, access = Metrics(workers.values()), Access(options.auth, options.api_keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for worker in workers.values():
            worker.close(1)

    app = FastAPI(title="xianliao", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.workers = workers
    app.state.note_reply = note_reply_in(metrics, options)
    rate = RateLimit(options.rate_limit)
    origins = Origins(frozenset(options.hosts), frozenset(options.allow_origins))
    app.state.limits = Limits(access, metrics, rate, options.body_bytes, options.body_seconds, origins)
    app.add_middleware(Gate, limits=app.state.limits)
    add_api(app, workers, metrics, safety, options, access)

    @app.get("/healthz")
    def healthz() -> Health:
        return Health(status="ok", checkpoint=bots[0].name, version=__version__)

    return mount_page(app, workers, safety, options)


def note_reply_in(metrics: Metrics, options: ServeOptions):
    """The function that counts and logs a reply of the page."""

    def note_reply(
        model: str,
        reply: Reply,
        first_token_seconds: float | None,
        conversation: str,
        said: str,
        reason: str | None = None,
    ) -> None:
        """Counts a reply in /metrics and writes its line of the log.

        Args:
            model: The checkpoint's name.
            reply: As far as it got.
            first_token_seconds: From sending to the first token.
            conversation: What the conversation is known by, for example its first message; only a hash is written.
            said: The message that was answered; written only when the operator asks for texts.
            reason: Why it ended, where the reply does not know it: `stopped` by the person, say.
        """
        metrics.count_reply(model, reply, reason)
        if first_token_seconds is not None:
            metrics.first_token.observe(first_token_seconds)
        shown = said if options.log_text else None
        fields = reply_fields(model, [reply], first_token_seconds, conversation, shown)
        fields |= {"stop_reason": reason or reply.stop_reason, "seconds": round(reply.seconds, 4)}
        log_event("reply", route="page", **fields)

    return note_reply


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
