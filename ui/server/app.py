"""The server: the page at /, the API at /v1, /healthz and /metrics, all in one process."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Literal

from fastapi import FastAPI
from pydantic import BaseModel

from chatbot import Chatbot, __version__
from chatbot.chat.bot import Reply
from chatbot.chat.worker import Worker
from chatbot.errors import XianliaoError
from chatbot.safety import Safety
from ui.api.routes import add_api
from ui.options import ServeOptions
from ui.page.handlers import ReplyCallback
from ui.page.mount import mount_page
from ui.server.access import Access
from ui.server.documents import Documents
from ui.server.gate import Gate
from ui.server.limits import Limits, RateLimit
from ui.server.logs import log_event, reply_fields
from ui.server.metrics import Metrics
from ui.server.origins import Origins
from ui.server.work import SENDER, WorkPool
from ui.studio.served import Results
from ui.studio.studio import Studio
from ui.studio.view import StudioView


class Health(BaseModel):
    """Response of /healthz."""

    status: Literal["ok"]
    checkpoint: str
    version: str


def create_app(
    bots: Chatbot | Sequence[Chatbot], options: ServeOptions | None = None, safety: Safety | None = None
) -> FastAPI:
    """Return the whole server as an ASGI application.

    Its `state` has `workers` (by checkpoint name), `limits`, `studio`, and `on_reply`, which the page calls after each
    reply.

    Args:
        bots: Bots to serve, the default one first. Each bot gets a worker that decodes for all clients.
        options: Options of the server; None selects the defaults.
        safety: Rules for all bots instead of each bot's rules. The bots that you pass are not changed.

    Raises:
        XianliaoError: Two checkpoints have the same name, or the folder of the training view is in use.
    """
    bots = [bots] if isinstance(bots, Chatbot) else list(bots)
    options = ServeOptions() if options is None else options
    bots = bots if safety is None else [bot.with_safety(safety) for bot in bots]
    names = [bot.name for bot in bots]
    for name in names:
        if names.count(name) > 1:
            raise XianliaoError(f"Duplicate checkpoint name {name!r}. Names must be unique.")
    pool = WorkPool()

    def make_worker(bot: Chatbot) -> Worker:
        return Worker(bot, options.max_rows, run=pool.run, sender=SENDER.get)

    workers = {bot.name: make_worker(bot) for bot in bots}
    studio = None if options.studio is None else Studio(options.studio)
    metrics, access = Metrics(workers.values()), Access(options.auth, options.api_keys)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        if studio is not None:
            await asyncio.to_thread(studio.close)
        for worker in workers.values():
            worker.close(1)
        pool.close()

    app = FastAPI(title="xianliao", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.workers = workers
    app.state.studio = studio
    app.state.on_reply = reply_recorder(metrics, options)
    origins = Origins(frozenset(options.hosts), frozenset(options.allow_origins))
    limits = app.state.limits = Limits(options, access, metrics, RateLimit(options.rate_limit), origins, pool=pool)
    app.add_middleware(Documents)
    app.add_middleware(Gate, limits=limits)  # before the documents
    add_api(app, workers, metrics, options, access, pool)

    @app.get("/healthz")
    @app.head("/healthz", include_in_schema=False)
    async def healthz() -> Health:  # needs none of the threads that long requests occupy
        return Health(status="ok", checkpoint=bots[0].name, version=__version__)

    view = None
    if studio is not None and options.studio is not None:
        view = StudioView(studio, workers, Results(workers, make_worker, options.studio).add, pool)
    limits.page = mount_page(app, workers, options, app.state.on_reply, pool, view)
    return app


def reply_recorder(metrics: Metrics, options: ServeOptions) -> ReplyCallback:
    """Return the function that counts and logs a reply of the page."""

    def record_reply(
        model: str,
        reply: Reply,
        first_token_seconds: float | None,
        conversation: str,
        message: str,
        reason: str | None = None,
    ) -> None:
        """Count a reply in /metrics and write its log line.

        Args:
            model: Name of the checkpoint.
            reply: The reply, complete or not.
            first_token_seconds: Seconds from the message to the first token.
            conversation: Identity of the conversation; only a salted hash is logged.
            message: Message that was answered; logged only with `log_text`.
            reason: Reason of the end that replaces the reply's own reason, for example `stopped`.
        """
        metrics.count_reply(model, reply, reason)
        if first_token_seconds is not None:
            metrics.first_token.observe(first_token_seconds)
        logged = message if options.log_text else None
        fields = reply_fields(model, [reply], first_token_seconds, conversation, logged)
        fields |= {"stop_reason": reason or reply.stop_reason, "seconds": round(reply.seconds, 4)}
        log_event("reply", route="page", **fields)

    return record_reply
