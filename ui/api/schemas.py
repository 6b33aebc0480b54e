"""What goes over the wire at /v1, in OpenAI's shapes, and how a history of messages becomes one of turns."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict, Field

from chatbot.chat.bot import MAX_SEED
from chatbot.chat.worker import BusyError, WorkerError
from chatbot.decoding.settings import ReplySettingsError
from chatbot.errors import XianliaoError
from chatbot.text.dialogue import DialogueError

MOST_MESSAGES = 512
MOST_CHARACTERS = 100_000
MOST_REPLIES = 8
MOST_STOPS = 4
MOST_STOP_CHARACTERS = 200


class Asked(BaseModel):
    """What requests are made of: what OpenAI's have beyond it is passed over, and `"1"` and `true` are no numbers."""

    model_config = ConfigDict(extra="ignore", strict=True)


Stop = Annotated[str, Field(max_length=MOST_STOP_CHARACTERS)]


class Part(Asked):
    """A piece of a message; only text can be read."""

    type: Literal["text"]
    text: str = Field(max_length=MOST_CHARACTERS)


class Message(Asked):
    """A message of the history."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, Field(max_length=MOST_CHARACTERS)] | Annotated[list[Part], Field(max_length=64)]

    @property
    def text(self) -> str:
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class StreamOptions(Asked):
    """How to stream."""

    include_usage: bool = False


class Completion(Asked):
    """A request."""

    model: str | None = None
    messages: list[Message] = Field(min_length=1, max_length=MOST_MESSAGES)
    stream: bool = False
    stream_options: StreamOptions | None = None
    n: int = Field(1, ge=1, le=MOST_REPLIES)
    seed: int | None = Field(None, ge=0, le=MAX_SEED)
    stop: Stop | Annotated[list[Stop], Field(max_length=MOST_STOPS)] | None = None
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
        changes = {
            "method": "greedy" if greedy else None,
            "temperature": None if greedy else self.temperature,
            "top_p": self.top_p,
            "max_reply_tokens": self.max_completion_tokens or self.max_tokens,
        }
        return {name: value for name, value in changes.items() if value is not None}


class Usage(BaseModel):
    """Tokens; those of replies count their ends."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int


class Said(BaseModel):
    """A reply as a message."""

    role: Literal["assistant"]
    content: str


class Answer(BaseModel):
    """One of the replies to a request."""

    index: int
    message: Said
    finish_reason: Literal["stop", "length", "content_filter"] | None
    logprobs: None


class Completed(BaseModel):
    """The whole answer to a request."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    choices: list[Answer]
    usage: Usage


class ModelEntry(BaseModel):
    """A checkpoint of the server."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ModelList(BaseModel):
    """The checkpoints of the server, the default one first."""

    object: Literal["list"]
    data: list[ModelEntry]


class Fault(BaseModel):
    """Why there is no answer."""

    message: str
    type: str
    param: None
    code: str | None


class Refusal(BaseModel):
    """An error, as OpenAI says it."""

    error: Fault


class ApiError(Exception):
    """A request that cannot be answered."""

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
    """One of our errors as the API says it."""
    if isinstance(error, BusyError):
        return ApiError(429, str(error), "rate_limit_error", "busy")
    if isinstance(error, WorkerError):
        return ApiError(503, str(error), "server_error", "shutting_down")
    if isinstance(error, (DialogueError, ReplySettingsError)):
        return ApiError(400, str(error))
    return ApiError(500, str(error), "server_error")


def to_response(error: ApiError, page: bool = False) -> JSONResponse:
    """The error as a response; the page wants its words as `detail`."""
    headers = {"Retry-After": str(error.retry_after)} if error.status in (429, 503) else {}
    if error.status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    detail = {"detail": error.content["message"]} if page else {}
    return JSONResponse({"error": error.content, **detail}, error.status, headers)
