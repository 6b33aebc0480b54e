"""An API in OpenAI's manner: /v1/chat/completions (whole or streamed), /v1/models, and /metrics.

A history of `user` and `assistant` messages is a history of turns. Messages of one role in a row are joined by a newline.
A `system` message has no place in this model: it is left out, and the header X-Ignored says so; who wants a persona gives
opening turns. Replies are those of the page for the same history, seed and settings.
"""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from typing import Annotated, Literal

from fastapi import APIRouter, Depends, FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from prometheus_client import generate_latest
from pydantic import BaseModel, ConfigDict, Field
from starlette.exceptions import HTTPException

from chatbot.batching import BusyError, Job, Worker, WorkerError
from chatbot.bot import MAX_SEED, Reply, candidate_seeds
from chatbot.dialogue import DialogueError
from chatbot.errors import XianliaoError
from chatbot.reply_settings import ReplySettingsError
from ui.metrics import Metrics
from ui.safety import Safety

MOST_MESSAGES = 512
MOST_CHARACTERS = 100_000
MOST_REPLIES = 8
MOST_STOPS = 4


class Part(BaseModel):
    """A piece of a message; only text can be read."""

    type: Literal["text"]
    text: str = Field(max_length=MOST_CHARACTERS)


class Message(BaseModel):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MOST_CHARACTERS)] | Annotated[list[Part], Field(max_length=64)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(BaseModel):
    include_usage: bool = False


class Completion(BaseModel):
    """A request; what OpenAI's has beyond it is passed over."""

    model_config = ConfigDict(extra="ignore")

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MOST_REPLIES)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: str | Annotated[list[str], Field(max_length=MOST_STOPS)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=10**6)
    max_completion_tokens: int | None = Field(None, ge=1, le=10**6)

    @property
    def stops(self) -> list[str]:
        return [text for text in ([self.stop] if isinstance(self.stop, str) else self.stop or []) if text]

    def changes(self) -> dict:
        """Fields of `ReplySettings` that the request sets."""
        greedy = self.temperature is not None and self.temperature < 0.01
        return {
            "method": "greedy" if greedy else None,
            "temperature": None if greedy else self.temperature,
            "top_p": self.top_p,
            "max_reply_tokens": self.max_completion_tokens or self.max_tokens,
        }


class ApiError(Exception):
    """A request that cannot be answered, as OpenAI says it."""

    def __init__(self, status: int, message: str, kind: str = "invalid_request_error", code: str | None = None):
        super().__init__(message)
        self.status, self.content = status, {"message": message, "type": kind, "param": None, "code": code}


def to_turns(messages: Sequence[Message]) -> tuple[list[str], list[str]]:
    """The turns of a conversation, the person's first, and what was left out of it.

    Raises:
        ApiError: The last message is not the person's.
    """
    turns: list[str] = []
    left_out = []
    for message in messages:
        if message.role in ("system", "developer"):
            left_out.append(message.role)
            continue
        speaker = 0 if message.role == "user" else 1
        if turns and (len(turns) - 1) % 2 == speaker:
            turns[-1] += "\n" + message.text
        elif turns or speaker == 0:
            turns.append(message.text)
        else:
            left_out.append("assistant before the first user")
    if not turns:
        raise ApiError(400, "There is no user message to answer.")
    if len(turns) % 2 == 0:
        raise ApiError(400, "The last message must be the user's; there is nothing to answer after an assistant's.")
    return turns, list(dict.fromkeys(left_out))


def until_stop(text: str, stops: Sequence[str], ended: bool) -> tuple[str, bool]:
    """The text before the first stop, and whether there was one; unended, without what may be the beginning of one."""
    places = [place for stop in stops if (place := text.find(stop)) >= 0]
    if places:
        return text[: min(places)], True
    if not ended:
        held = max((n for stop in stops for n in range(1, len(stop)) if text.endswith(stop[:n])), default=0)
        text = text[: len(text) - held]
    return text, False


@dataclass
class Choice:
    """One of the replies of a request, as far as it is."""

    reply: Reply | None = None
    text: str = ""
    finish: str | None = None

    def take(self, reply: Reply, ended: bool, stops: Sequence[str]) -> str:
        """Takes the next state of the reply and returns what is new of the text."""
        self.reply = reply
        text, stopped = until_stop(reply.text, stops, ended)
        new, self.text = text[len(self.text) :], max(self.text, text, key=len)
        if stopped:
            self.finish = "stop"
        elif ended:
            self.finish = "length" if reply.stop_reason == "limit" else "stop"
        return new


class Answers:
    """The replies of one request while they are decoded; `close` frees their places."""

    def __init__(self, worker: Worker, body: Completion, turns: Sequence[str], metrics: Metrics):
        self.stops, self.metrics, self.started = body.stops, metrics, time.perf_counter()
        seed = secrets.randbelow(MAX_SEED) if body.seed is None else body.seed
        requests = [worker.bot.request(turns, each, **body.changes()) for each in candidate_seeds(seed, body.n)]
        self.prompt_tokens = len(requests[0].prompt.input_ids)
        self.choices = [Choice() for _ in requests]
        self._arrived: asyncio.Queue = asyncio.Queue()
        loop = asyncio.get_running_loop()
        self._jobs: list[Job] = []
        try:
            for number, request in enumerate(requests):

                def deliver(what, number=number):
                    loop.call_soon_threadsafe(self._arrived.put_nowait, (number, what))

                self._jobs.append(worker.submit(request, deliver))
        except XianliaoError:
            self.close()
            raise

    def close(self) -> None:
        for job in self._jobs:
            job.cancel()

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """(which reply, new text), until all have ended."""
        going = set(range(len(self.choices)))
        last: dict[int, Reply] = {}
        seen_first = False
        while going:
            number, what = await self._arrived.get()
            if number not in going:
                continue
            if isinstance(what, BaseException):
                raise what
            if not seen_first:
                self.metrics.first_token.observe(time.perf_counter() - self.started)
                seen_first = True
            choice = self.choices[number]
            ended = what is None
            reply = last[number] if ended else what
            last[number] = reply
            new = choice.take(reply, ended, self.stops)
            if new:
                yield number, new
            if choice.finish is not None:
                going.discard(number)
                self._jobs[number].cancel()
                self.metrics.replies.labels(reply.stop_reason).inc()
                self.metrics.tokens.inc(len(reply.token_ids) + 1)

    @property
    def usage(self) -> dict:
        completion = sum(len(choice.reply.token_ids) + 1 for choice in self.choices if choice.reply is not None)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


class FixedAnswers:
    """Replies that no model gave, for `build_router` like `Answers`."""

    def __init__(self, text: str, count: int):
        self.text, self.choices = text, [Choice() for _ in range(count)]
        self.usage = {"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        for number, choice in enumerate(self.choices):
            choice.text, choice.finish = self.text, "content_filter"
            yield number, self.text

    def close(self) -> None:
        """There is nothing to free."""


def build_router(worker: Worker, metrics: Metrics, safety: Safety, api_key: str | None = None) -> APIRouter:
    """The routes below /v1."""

    def check_key(request: Request) -> None:
        given = request.headers.get("authorization", "").removeprefix("Bearer ")
        if api_key is not None and not secrets.compare_digest(given.encode(), api_key.encode()):
            raise ApiError(401, "The API key is missing or wrong.", code="invalid_api_key")

    router = APIRouter(prefix="/v1", dependencies=[Depends(check_key)])
    created = int(time.time())

    @router.get("/models")
    def models() -> dict:
        entry = {"id": worker.bot.name, "object": "model", "created": created, "owned_by": "xianliao"}
        return {"object": "list", "data": [entry]}

    @router.post("/chat/completions", response_model=None)
    async def complete(body: Completion, request: Request) -> JSONResponse | StreamingResponse:
        if body.model not in (None, worker.bot.name, "default"):
            message = f"There is no model {body.model!r} here; the model is {worker.bot.name}."
            raise ApiError(404, message, code="model_not_found")
        turns, left_out = to_turns(body.messages)
        head = {"id": f"chatcmpl-{secrets.token_hex(12)}", "created": int(time.time()), "model": worker.bot.name}
        conversation = (
            request.headers.get("x-conversation-id") or sha256(turns[0].encode("utf-8", "replace")).hexdigest()
        )
        headers = {"X-Conversation-Id": conversation[:64].encode("ascii", "replace").decode()}
        if left_out:
            headers["X-Ignored"] = ", ".join(left_out)
        fixed = safety.answer(turns[-1])
        if fixed is not None:
            headers["X-Fixed-Reply"] = fixed.kind
            answers = FixedAnswers(fixed.text, body.n)
        else:
            answers = Answers(worker, body, [*turns[:-1], safety.cleaned(turns[-1])], metrics)
        if body.stream:
            events = _events(answers, head, body)
            return StreamingResponse(events, media_type="text/event-stream", headers=headers)
        try:
            async for _ in answers.pieces():
                if await request.is_disconnected():
                    break
        finally:
            answers.close()
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": choice.text},
                "finish_reason": choice.finish,
                "logprobs": None,
            }
            for index, choice in enumerate(answers.choices)
        ]
        return JSONResponse(
            {**head, "object": "chat.completion", "choices": choices, "usage": answers.usage}, headers=headers
        )

    @router.api_route("/{path:path}", methods=["GET", "POST", "PUT", "PATCH", "DELETE"], include_in_schema=False)
    def unknown(path: str) -> None:
        raise ApiError(404, f"There is no /v1/{path} here; there are /v1/models and /v1/chat/completions.")

    return router


async def _events(answers: Answers | FixedAnswers, head: dict, body: Completion) -> AsyncIterator[str]:
    """Server-sent events of a streamed completion; an error in the middle is an event too."""

    def chunk(index: int, delta: dict, finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    try:
        for index in range(len(answers.choices)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, new in answers.pieces():
            yield chunk(index, {"content": new})
        for index, choice in enumerate(answers.choices):
            yield chunk(index, {}, choice.finish)
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": answers.usage})
        yield "data: [DONE]\n\n"
    except XianliaoError as error:
        yield _event({"error": as_api_error(error).content})
    finally:  # the client may be gone: its places are free now
        answers.close()


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


def as_api_error(error: XianliaoError) -> ApiError:
    """One of our errors as the API says it."""
    if isinstance(error, BusyError):
        return ApiError(429, str(error), "rate_limit_error", "busy")
    if isinstance(error, WorkerError):
        return ApiError(503, str(error), "server_error", "shutting_down")
    if isinstance(error, (DialogueError, ReplySettingsError)):
        return ApiError(400, str(error))
    return ApiError(500, str(error), "server_error")


def add_api(app: FastAPI, worker: Worker, safety: Safety, api_key: str | None = None) -> Metrics:
    """Puts the API, its errors and /metrics on a server."""
    metrics = Metrics(worker)

    def refuse(error: ApiError) -> JSONResponse:
        metrics.errors.labels(str(error.status)).inc()
        headers = {"Retry-After": "1"} if error.status in (429, 503) else None
        return JSONResponse({"error": error.content}, error.status, headers)

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
        return refuse(ApiError(error.status_code, f"{error.detail}: {request.method} {request.url.path}."))

    @app.get("/metrics", include_in_schema=False)
    def show_metrics() -> PlainTextResponse:
        return PlainTextResponse(generate_latest(metrics.registry), media_type="text/plain; version=0.0.4")

    app.include_router(build_router(worker, metrics, safety, api_key))
    return metrics
