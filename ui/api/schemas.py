"""Responses of /v1 in OpenAI's format, and errors."""

from __future__ import annotations

from typing import Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel

from chatbot.chat.worker import BusyError, WorkerError
from chatbot.decoding.settings import ReplySettingsError
from chatbot.errors import XianliaoError
from chatbot.text.dialogue import DialogueError
from ui.server.work import OverloadError


class Usage(BaseModel):
    """Token counts; the end of a reply counts as one token if the model generated it."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class ReplyMessage(BaseModel):
    """Reply as a message; `reasoning_content` has the thoughts of a model that shows them."""

    role: Literal["assistant"]
    content: str
    refusal: None
    reasoning_content: str | None = None


class TokenLogprob(BaseModel):
    """Token with its log-probability, in nats, under the model's distribution over the allowed tokens.

    That is the distribution before penalties, biases, temperature, EOS floor and truncation. The end of turn has no bytes.
    """

    token: str
    logprob: float
    bytes: list[int] | None


class ScoredToken(TokenLogprob):
    """Token of the reply, with the tokens that were most likely at its position."""

    top_logprobs: list[TokenLogprob]


class Logprobs(BaseModel):
    """Log-probabilities of the tokens of a reply, without its end."""

    content: list[ScoredToken]
    refusal: None


class Choice(BaseModel):
    """One reply to a request; `n` of them can be requested."""

    index: int
    message: ReplyMessage
    finish_reason: Literal["stop", "length", "content_filter"] | None
    logprobs: Logprobs | None


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
    param: str | None
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
        param: str | None = None,
    ):
        super().__init__(message)
        self.status, self.retry_after = status, retry_after
        self.content = {"message": message, "type": kind, "param": param, "code": code}


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
