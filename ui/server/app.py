"""The server: the page at /, the API at /v1, /healthz and /metrics, all in one process."""

from __future__ import annotations

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
from ui.page.layout import mount_page
from ui.server.access import Access
from ui.server.limits import Gate, Limits, RateLimit
from ui.server.logs import log_event, reply_fields
from ui.server.metrics import Metrics
from ui.server.origins import Origins


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
        safety: Rules for all bots instead of their own; None leaves each bot its own. The bots given stay as they are.

    Raises:
        XianliaoError: Two checkpoints have the same name.
    """
    bots = [bots] if isinstance(bots, Chatbot) else list(bots)
    options = ServeOptions() if options is None else options
    bots = bots if safety is None else [bot.with_safety(safety) for bot in bots]
    names = [bot.name for bot in bots]
    if twice := [name for name in names if names.count(name) > 1]:
        raise XianliaoError(f"Two checkpoints have the name {twice[0]!r}, so nobody could choose; give each its own.")
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
    add_api(app, workers, metrics, options, access)

    @app.get("/healthz")
    def healthz() -> Health:
        return Health(status="ok", checkpoint=bots[0].name, version=__version__)

    return mount_page(app, workers, options)


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
