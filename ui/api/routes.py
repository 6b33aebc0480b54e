"""API in OpenAI's format: /v1/chat/completions (whole or streamed), /v1/models, and /metrics.

Messages with the roles `user` and `assistant` form the history; consecutive messages of one role are joined by a
newline. Messages of the roles `system` and `developer` at the beginning are the system prompt of a model with a chat
template; our own models have none. Messages that are left out, such as those of tools, and fields without effect are named
in the header X-Ignored. To give our own models a persona, begin the history with example turns. For the same history, seed
and settings a reply is the same as on the page.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from hashlib import sha256
from typing import Annotated, Any

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
from ui.api.history import to_turns, within_bounds
from ui.api.requests import CompletionRequest, parse
from ui.api.schemas import (
    ApiError,
    CompletionResponse,
    ErrorResponse,
    ModelEntry,
    ModelList,
    as_api_error,
    to_response,
)
from ui.api.streams import Replies, ReplyState, events
from ui.options import ServeOptions
from ui.server.access import Access
from ui.server.logs import reply_fields
from ui.server.metrics import Metrics
from ui.server.work import WorkPool

ERROR_RESPONSES: dict[int | str, dict[str, Any]] = {"4XX": {"model": ErrorResponse}, "5XX": {"model": ErrorResponse}}
METHODS = {"/v1/models": "GET, HEAD", "/v1/models/ID": "GET, HEAD", "/v1/chat/completions": "POST"}
SCHEMAS = "#/components/schemas/"
MAX_BYTES_IN_LOOP = 16 * 1024
"""Larger bodies are parsed in a thread, so that other requests are answered meanwhile."""

DISCONNECT_SECONDS = 0.5
"""Interval at which the server checks whether a client that waits for a whole response is still connected."""


class Api:
    """Routes of one server.

    Args:
        workers: Workers by the name of their checkpoint; the first is the default.
        metrics: Counters of the server.
        log_text: Whether messages and replies are logged.
        pool: Threads for work on texts.
    """

    def __init__(
        self, workers: Mapping[str, Worker], metrics: Metrics, log_text: bool = False, pool: WorkPool | None = None
    ):
        self.workers, self.metrics, self.log_text, self.pool = workers, metrics, log_text, pool or WorkPool()
        self.created = int(time.time())

    def worker(self, model: str | None) -> Worker:
        """Return the worker of a model. None, and `default` if no checkpoint has that name, select the first one.

        Raises:
            ApiError: The server has no model of this name.
        """
        if model is not None and model in self.workers:
            return self.workers[model]
        if model in (None, "default"):
            return next(iter(self.workers.values()))
        message = f"This server has no model {model[:100]!r}. Its models: {', '.join(self.workers)}."
        raise ApiError(404, message, code="model_not_found")

    def models(self) -> dict:
        """List the checkpoints of this server, the default one first."""
        return {"object": "list", "data": [self.model(name) for name in list(self.workers)]}

    def model(self, model: str) -> dict:
        """Describe a checkpoint of this server.

        Raises:
            ApiError: The server has no model of this name.
        """
        name = self.worker(model).bot.name
        return {"id": name, "object": "model", "created": self.created, "owned_by": "xianliao"}

    async def read(self, request: Request) -> CompletionRequest:
        """Return the body of a request, checked.

        Raises:
            ApiError: The body is not a request.
        """
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != "application/json":
            received = f"got {kind[:60]!r}" if kind else "which is missing"
            raise ApiError(400, f"Send the header Content-Type: application/json, {received}.")
        body = await request.body()
        if len(body) <= MAX_BYTES_IN_LOOP:
            return parse(body)
        return await self.pool.run_async(len(body), parse, body)

    async def complete(self, request: Request) -> JSONResponse | StreamingResponse:
        """Reply to the last message, whole or as server-sent events."""
        body = await self.read(request)
        request.state.count_replies(body.n)
        worker = self.worker(body.model)
        turns, left_out, system = to_turns(body.messages, worker.bot.layout.takes_system)
        left_out += body.ignored()
        conversation = request.headers.get("x-conversation-id")
        conversation = conversation or sha256(turns[0][:1000].encode("utf-8", "replace")).hexdigest()
        headers = {"X-Conversation-Id": conversation[:64].strip().encode("ascii", "replace").decode()}
        if left_out:
            headers["X-Ignored"] = ", ".join(left_out)
        size = sum(map(len, turns)) + len(system)
        prepared = await self.pool.run_async(size, self._prepare, worker, body, turns, system)
        if prepared.fixed is not None:
            headers["X-Fixed-Reply"] = prepared.fixed.kind
        replies = Replies(worker, prepared, body, self.metrics)

        def close() -> None:
            replies.close()
            request.state.record.fields = reply_fields(
                worker.bot.name,
                replies.replies,
                replies.first_token_seconds,
                conversation,
                turns[-1] if self.log_text else None,
            )

        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": worker.bot.name}
        if body.stream:
            stream = _closing(events(replies, head, body), close)
            return StreamingResponse(stream, media_type="text/event-stream", headers=headers)
        try:
            await wait_for(replies, request)
        finally:
            close()
        return JSONResponse({**head, **whole(replies)}, headers=headers)

    def _prepare(self, worker: Worker, body: CompletionRequest, turns: Sequence[str], system: str) -> ReplyRequest:
        return worker.bot.request(within_bounds(turns, worker.bot), body.seed, system=system, **body.changes())


async def wait_for(replies: Replies, request: Request) -> None:
    """Return when all replies are complete or the client has left, even if its request still waits in the queue.

    Raises:
        XianliaoError, ApiError: A reply failed.
    """

    async def read_all() -> None:
        async for _ in replies.pieces():
            pass

    reading = asyncio.create_task(read_all())
    try:
        while not reading.done() and not await request.is_disconnected():
            await asyncio.wait([reading], timeout=DISCONNECT_SECONDS)
        if reading.done():
            reading.result()
    finally:
        reading.cancel()


def thoughts_of(state: ReplyState) -> dict[str, str]:
    """Return the field of a message with the thoughts of its reply; an empty dict if the reply has none."""
    return {"reasoning_content": state.reply.thoughts} if state.reply is not None and state.reply.thoughts else {}


def whole(replies: Replies) -> dict:
    """Return the response to a request whose replies are complete, without its head."""
    choices = [
        {
            "index": index,
            "message": {"role": "assistant", "content": state.text, "refusal": None, **thoughts_of(state)},
            "finish_reason": state.finish,
            "logprobs": replies.new_logprobs(index),
        }
        for index, state in enumerate(replies.states)
    ]
    return {"object": "chat.completion", "choices": choices, "usage": replies.usage}


async def _closing(stream: AsyncIterator[str], close: Callable[[], None]) -> AsyncIterator[str]:
    try:
        async for event in stream:
            yield event
    finally:  # also if the client has left
        close()


def build_router(api: Api, access: Access) -> APIRouter:
    """Return the routes /v1/models, /v1/chat/completions and /metrics with their check of credentials.

    `ui.server.gate` refuses requests without credentials before it reads their bodies. The check here keeps the routes
    closed if they are mounted without that gate, and it declares in the OpenAPI document that the routes need a bearer key.
    """

    def check(
        request: Request, key: Annotated[HTTPAuthorizationCredentials | None, Security(HTTPBearer(auto_error=False))]
    ) -> None:
        if access.identify(request.headers.get("authorization")) is None:
            raise access.refusal()

    router = APIRouter(dependencies=[] if access.is_open else [Depends(check)])
    event = {"type": "object", "properties": {"data": {"type": "string"}}, "required": ["data"]}
    success: dict[str, Any] = {
        "model": CompletionResponse,
        "description": "Whole, or with stream as events",
        "content": {"text/event-stream": {"schema": event}},
    }
    router.get("/v1/models", response_model=ModelList, responses=ERROR_RESPONSES)(api.models)
    router.get("/v1/models/{model}", response_model=ModelEntry, responses=ERROR_RESPONSES)(api.model)
    router.head("/v1/models", include_in_schema=False)(api.models)
    router.head("/v1/models/{model}", include_in_schema=False)(api.model)
    router.post(
        "/v1/chat/completions",
        response_model=CompletionResponse,
        responses={200: success, **ERROR_RESPONSES},
        openapi_extra={
            "requestBody": {
                "required": True,
                "content": {"application/json": {"schema": {"$ref": f"{SCHEMAS}CompletionRequest"}}},
            }
        },
    )(api.complete)

    @router.get("/metrics", include_in_schema=False)
    @router.head("/metrics", include_in_schema=False)
    def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(api.metrics.registry), media_type="text/plain; version=0.0.4")

    return router


async def unknown_route(scope: Scope, receive: Receive, send: Send) -> None:
    """Refuse every other path below /v1 in OpenAI's format."""
    path = scope["path"]
    pattern = "/v1/models/ID" if path.startswith("/v1/models/") else path
    if pattern in METHODS:
        raise HTTPException(405, f"{pattern} accepts {METHODS[pattern]} only", {"Allow": METHODS[pattern]})
    raise ApiError(404, f"No route {path[:100]}. This server has {' and '.join(METHODS)}.")


def add_api(
    app: FastAPI,
    workers: Mapping[str, Worker],
    metrics: Metrics,
    options: ServeOptions,
    access: Access,
    pool: WorkPool | None = None,
) -> None:
    """Add the API, its error responses and /metrics to a server."""
    app.include_router(build_router(Api(workers, metrics, options.log_text, pool), access))
    describe_request(app)
    app.mount("/v1", unknown_route)
    add_error_handlers(app, metrics)


def describe_request(app: FastAPI) -> None:
    """Add the schema of a request, which `Api.read` reads, to the OpenAPI document."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        document = describe()
        schema = CompletionRequest.model_json_schema(ref_template=f"{SCHEMAS}{{model}}")
        parts = {**schema.pop("$defs", {}), "CompletionRequest": schema}
        document.setdefault("components", {}).setdefault("schemas", {}).update(parts)
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # FastAPI documents this way to extend the document


def add_error_handlers(app: FastAPI, metrics: Metrics) -> None:
    """Register handlers that answer every error of a server in OpenAI's format and count the error."""

    def respond(error: ApiError) -> JSONResponse:
        metrics.errors.labels(str(error.status)).inc()
        return to_response(error)

    @app.exception_handler(ApiError)
    async def handle_api_error(request: Request, error: ApiError) -> JSONResponse:
        return respond(error)

    @app.exception_handler(XianliaoError)
    async def handle_own_error(request: Request, error: XianliaoError) -> JSONResponse:
        return respond(as_api_error(error))

    @app.exception_handler(RequestValidationError)
    async def handle_invalid_body(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return respond(ApiError(400, f"{field}: {first['msg']}."))

    @app.exception_handler(HTTPException)
    async def handle_http_error(request: Request, error: HTTPException) -> JSONResponse:
        response = respond(ApiError(error.status_code, f"{error.detail}."))
        response.headers.update(error.headers or {})
        return response

    @app.exception_handler(Exception)
    async def handle_unexpected(request: Request, error: Exception) -> JSONResponse:
        return respond(failed())


def failed() -> ApiError:
    """Return the error for a request on which the server failed."""
    return ApiError(500, "The server failed on this request. Try again.", "server_error", "failed")
