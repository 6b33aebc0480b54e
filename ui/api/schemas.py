"""Requests and responses of /v1 in OpenAI's format, and errors."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from chatbot.chat.bot import MAX_SEED
from chatbot.chat.worker import BusyError, WorkerError
from chatbot.decoding.settings import ReplySettingsError
from chatbot.errors import XianliaoError
from chatbot.text.dialogue import DialogueError
from ui.server.work import OverloadError

MAX_MESSAGES = 512
MAX_PARTS = 64
MAX_REPLIES = 8
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 200


class RequestModel(BaseModel):
    """Base of requests. Unknown fields are ignored, as OpenAI has many more; `"1"` and `true` are not numbers."""

    model_config = ConfigDict(extra="ignore", strict=True)


Stop = Annotated[str, Field(max_length=MAX_STOP_CHARACTERS)]


class Part(RequestModel):
    """Part of a message; only text is supported."""

    type: Literal["text"]
    text: str


class Message(RequestModel):
    """Message of the history."""

    role: Literal["system", "developer", "user", "assistant"]
    content: str | Annotated[list[Part], Field(max_length=MAX_PARTS, fail_fast=True)]

    @property
    def text(self) -> str:
        """The content as one text."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: bool = False


class CompletionRequest(RequestModel):
    """Request for replies."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MAX_REPLIES)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=MAX_STOPS, fail_fast=True)] | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1, le=10**6)
    max_completion_tokens: int | None = Field(None, ge=1, le=10**6)

    @property
    def stops(self) -> list[str]:
        """Stop sequences, without empty ones."""
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        return [text for text in stops if text]

    def changes(self) -> dict[str, Any]:
        """Return the fields of `ReplySettings` that the request sets; None leaves a field as it is."""
        greedy = self.temperature is not None and self.temperature < 0.01
        changes = {
            "method": "greedy" if greedy else None,
            "temperature": None if greedy else self.temperature,
            "top_p": self.top_p,
            "max_reply_tokens": self.max_completion_tokens or self.max_tokens,
        }
        return {name: value for name, value in changes.items() if value is not None}


class Usage(BaseModel):
    """Token counts; the end of a reply counts as one token."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """Reply as a message."""

    role: Literal["assistant"]
    content: str


class Choice(BaseModel):
    """One of the replies to a request."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length", "content_filter"] | None
    logprobs: None


class CompletionResponse(BaseModel):
    """Whole response to a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Choice]
    usage: Usage


class ModelEntry(BaseModel):
    """Checkpoint of the server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """Checkpoints of the server, the default one first."""

    object: Literal["list"]
    data: list[ModelEntry]


class ErrorBody(BaseModel):
    """Reason why a request was refused or failed."""

    message: str
    type: str
    param: None
    code: str | None


class ErrorResponse(BaseModel):
    """Error in OpenAI's format."""

    error: ErrorBody


class ApiError(Exception):
    """A request that is refused or failed.

    Attributes:
        status: HTTP status.
        content: `error` object of the response.
        retry_after: Seconds until the client may try again; sent with 429 and 503.
    """

    def __init__(
        self,
        status: int,
        message: str,
        kind: str = "invalid_request_error",
        code: str | None = None,
        retry_after: int = 1,
    ):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.content = {"message": message, "type": kind, "param": None, "code": code}


def as_api_error(error: XianliaoError) -> ApiError:
    """Return the API error for an error of this project."""
    if isinstance(error, BusyError):
        return ApiError(429, str(error), "rate_limit_error", "busy")
    if isinstance(error, OverloadError):
        return ApiError(503, str(error), "server_error", "busy")
    if isinstance(error, WorkerError):
        return ApiError(503, str(error), "server_error", "shutting_down")
    if isinstance(error, (DialogueError, ReplySettingsError)):
        return ApiError(400, str(error))
    return ApiError(500, str(error), "server_error")


def to_response(error: ApiError, page: bool = False) -> JSONResponse:
    """Return the response for an error; the page reads its message from `detail`."""
    headers = {"Retry-After": str(error.retry_after)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    detail = {"detail": error.content["message"]} if page else {}
    return JSONResponse({"error": error.content, **detail}, error.status, headers)
