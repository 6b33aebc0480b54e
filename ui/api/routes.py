"""An API in OpenAI's manner: /v1/chat/completions (whole or streamed), /v1/models, and /metrics.

A history of `user` and `assistant` messages is a history of turns. Messages of one role in a row are joined by a newline.
A `system` message has no place in this model: it is left out, and the header X-Ignored says so; who wants a persona gives
opening turns. Replies are those of the page for the same history, seed and settings.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from hashlib import sha256
from typing import Annotated

from fastapi import APIRouter, Depends, FastAPI, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from prometheus_client import generate_latest
from starlette.exceptions import HTTPException
from starlette.types import Receive, Scope, Send

from chatbot.chat.bot import Request as ReplyRequest
from chatbot.chat.worker import Worker
from chatbot.errors import XianliaoError
from ui.api.history import to_turns
from ui.api.schemas import ApiError, Completed, Completion, ModelList, Refusal, as_api_error, to_response
from ui.api.streams import Answers, events
from ui.options import ServeOptions
from ui.server.access import Access
from ui.server.logs import reply_fields
from ui.server.metrics import Metrics

REFUSALS = {"4XX": {"model": Refusal}, "5XX": {"model": Refusal}}
METHODS = {"/v1/models": "GET", "/v1/chat/completions": "POST"}
DISCONNECT_SECONDS = 0.5
"""How often it is looked whether a client that waits for a whole answer is still there."""


class Api:
    """The routes of one server.

    Args:
        workers: By the name of their checkpoint; the first is the default.
    """

    def __init__(self, workers: Mapping[str, Worker], metrics: Metrics, log_text: bool = False):
        self.workers, self.metrics, self.log_text = workers, metrics, log_text
        self.created = int(time.time())

    def worker(self, model: str | None) -> Worker:
        """The worker of a model; no name, and `default` where no checkpoint has that name, is the first.

        Raises:
            ApiError: There is no such model.
        """
        found = self.workers.get(model) if model is not None else None
        if found is None and model in (None, "default"):
            found = next(iter(self.workers.values()))
        if found is None:
            there = ", ".join(self.workers)
            raise ApiError(404, f"There is no model {model[:100]!r} here; there is {there}.", code="model_not_found")
        return found

    def models(self) -> dict:
        """The checkpoints of this server, the default one first."""
        entry = {"object": "model", "created": self.created, "owned_by": "xianliao"}
        return {"object": "list", "data": [{"id": name, **entry} for name in self.workers]}

    async def complete(self, body: Completion, request: Request) -> JSONResponse | StreamingResponse:
        """Replies to the last message, whole or as server-sent events."""
        worker = self.worker(body.model)
        turns, left_out = to_turns(body.messages)
        conversation = request.headers.get("x-conversation-id")
        conversation = conversation or sha256(turns[0].encode("utf-8", "replace")).hexdigest()
        headers = {"X-Conversation-Id": conversation[:64].encode("ascii", "replace").decode()}
        if left_out:
            headers["X-Ignored"] = ", ".join(left_out)
        asked = await asyncio.to_thread(self._read, worker, body, turns)
        if asked.fixed is not None:
            headers["X-Fixed-Reply"] = asked.fixed.kind
        answers = Answers(worker, asked, body, self.metrics)

        def close() -> None:
            answers.close()
            said = turns[-1] if self.log_text else None
            about = (worker.bot.name, list(answers.replies), answers.first_token_seconds, conversation, said)
            request.state.record.fields = reply_fields(*about)

        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": worker.bot.name}
        if body.stream:
            stream = _closing(events(answers, head, body), close)
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        try:
            await wait_for(answers, request)
        finally:
            close()
        return JSONResponse({**head, **whole(answers)}, headers=headers)

    def _read(self, worker: Worker, body: Completion, turns: Sequence[str]) -> ReplyRequest:
        """What to answer with; reading a long history takes a second, in which others want to be answered."""
        return worker.bot.request(turns, body.seed, **body.changes())


async def wait_for(answers: Answers, request: Request) -> None:
    """Returns when all replies have ended, or the client has left, be it from the queue.

    Raises:
        XianliaoError, ApiError: A reply failed.
    """

    async def go_through() -> None:
        async for _ in answers.pieces():
            pass

    replies = asyncio.create_task(go_through())
    try:
        while not replies.done() and not await request.is_disconnected():
            await asyncio.wait([replies], timeout=DISCONNECT_SECONDS)
        if replies.done():
            replies.result()
    finally:
        replies.cancel()


def whole(answers: Answers) -> dict:
    """What is said of replies that have ended."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": choice.text},
            "finish_reason": choice.finish,
            "logprobs": None,
        }
        for index, choice in enumerate(answers.choices)
    ]
    return {"object": "chat.completion", "choices": choices, "usage": answers.usage}


async def _closing(stream: AsyncIterator[str], close) -> AsyncIterator[str]:
    try:
        async for event in stream:
            yield event
    finally:  # the client may be gone: its places are free now
        close()


def build_router(api: Api, access: Access) -> APIRouter:
    """/v1/models, /v1/chat/completions and /metrics, for who may use them."""

    def check(
        request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
    ) -> None:  # `key` is for the OpenAPI document: clients without a user send one
        if access.who(request.headers.get("authorization")) is None:
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    router = APIRouter(dependencies=[] if access.is_open else [Depends(check)])
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    streamed = {"text/event-stream": {"schema": event}}
    replied = {200: {"model": Completed, "description": "Whole, or with stream as events", "content": streamed}}
    router.get("/v1/models", response_model=ModelList, responses=REFUSALS)(api.models)
    router.post("/v1/chat/completions", response_model=Completed, responses={**replied, **REFUSALS})(api.complete)

    @router.get("/metrics", include_in_schema=False)
    def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(api.metrics.registry), media_type="text/plain; version=0.0.4")

    return router


async def nothing_here(scope: Scope, receive: Receive, send: Send) -> None:
    """What is left below /v1."""
    path = scope["path"]
    if path in METHODS:
        raise HTTPException(405, f"{path} takes {METHODS[path]}", {"Allow": METHODS[path]})
    raise ApiError(404, f"There is no {path[:100]} here; there are {' and '.join(METHODS)}.")


def add_api(
    app: FastAPI, workers: Mapping[str, Worker], metrics: Metrics, options: ServeOptions, access: Access
) -> None:
    """Puts the API, its errors and /metrics on a server."""

    def refuse(error: ApiError) -> JSONResponse:
        metrics.errors.labels(str(error.status)).inc()
        return to_response(error)

    @app.exception_handler(ApiError)
    async def of_the_api(request: Request, error: ApiError) -> JSONResponse:
        return refuse(error)

    @app.exception_handler(XianliaoError)
    async def of_ours(request: Request, error: XianliaoError) -> JSONResponse:
        return refuse(as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def of_the_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return refuse(ApiError(400, f"{place}: {first['msg']}."))

    @app.exception_handler(HTTPException)
    async def of_http(request: Request, error: HTTPException) -> JSONResponse:
        response = refuse(ApiError(error.status_code, f"{error.detail}."))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def of_nobody(request: Request, error: Exception) -> JSONResponse:
        return refuse(ApiError(500, "The server failed on this request; try again.", "server_error", "failed"))

    app.include_router(build_router(Api(workers, metrics, options.log_text), access))
    app.mount("/v1", nothing_here)
