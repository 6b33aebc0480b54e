"""The server: the page at /, the API at /v1, /healthz and /metrics, all in one process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager

from fastapi import FastAPI

from chatbot import Chatbot, __version__
from chatbot.batching import Worker
from ui.api import add_api
from ui.app import mount_page
from ui.options import ServeOptions
from ui.safety import Safety


def create_app(
    bots: Chatbot | Sequence[Chatbot], options: ServeOptions | None = None, safety: Safety | None = None
) -> FastAPI:
    """The whole server: the page at /, the API at /v1, /healthz and /metrics beside them.

    Args:
        bots: Whose replies they are, the default one first; from here on one worker of each decodes for everybody.
        options: None takes the defaults.
        safety: What is kept out and what is answered instead; None takes the files that come along.
    """
    bots = [bots] if isinstance(bots, Chatbot) else list(bots)
    options = ServeOptions() if options is None else options
    safety = Safety.load() if safety is None else safety
    for bot in bots:
        bot.settings = bot.settings.with_changes(banned_words=(*bot.settings.banned_words, *safety.banned_words))
    workers = {bot.name: Worker(bot) for bot in bots}

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        yield
        for worker in workers.values():
            worker.close(1)

    app = FastAPI(title="xianliao", version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    add_api(app, workers[bots[0].name], safety, options.api_keys[0] if options.api_keys else None)

    @app.get("/healthz")
    def healthz() -> dict:
        return {"status": "ok", "checkpoint": bots[0].name, "version": __version__}

    return mount_page(app, workers, safety, options)
