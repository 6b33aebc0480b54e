"""Requests to /v1/chat/completions in OpenAI's format.

Null means the default wherever OpenAI allows null, and -1 means it where clients commonly send it. A field that this server
cannot honour is refused if the client could not use the reply, for example another `response_format`. Otherwise the header
X-Ignored names it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import islice
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic_core import PydanticCustomError

from chatbot.chat.bot import MAX_SEED
from chatbot.chat.turns import SYSTEM_ROLES
from chatbot.chat.variants import MAX_SPREAD, MAX_VARIATION
from ui.api.schemas import ApiError
from ui.json_bounds import MAX_MARKS, has_too_many_values

MAX_MESSAGES = 512
MAX_PARTS = 64
MAX_REPLIES = 8
MAX_STOPS = 4
MAX_STOP_CHARACTERS = 200
MAX_BIASES = 1024
MAX_TOKENS = 10**6
MAX_NAMES = 20
"""Number of field names in X-Ignored."""

SKIPPED_ROLES = (*SYSTEM_ROLES, "tool", "function")
"""Roles whose messages are left out of the history; a chat model reads messages of `SYSTEM_ROLES` as its system prompt."""

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,39}")
_UTF8_MARK = b"\xef\xbb\xbf"


def _wrong(text: str, **values: Any) -> PydanticCustomError:
    """Return the error of a validator; `values` fill the braces of the text."""
    return PydanticCustomError("unsupported", text, values)


def _default_if_minus_one(value: Any) -> Any:
    return None if type(value) is int and value == -1 else value


def _or(default: Any) -> BeforeValidator:
    """Return a validator that takes null for the default."""
    return BeforeValidator(lambda value: default if value is None else value)


def _read_stops(value: Any) -> Any:
    stops = [] if value is None else [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise _wrong("It must be a text or a list of texts")
    if len(stops) > MAX_STOPS:
        raise _wrong("At most {limit} stop sequences are allowed, got {count}", limit=MAX_STOPS, count=len(stops))
    if (longest := max(map(len, stops), default=0)) > MAX_STOP_CHARACTERS:
        raise _wrong(
            "A stop sequence may have at most {limit} characters, got {count}",
            limit=MAX_STOP_CHARACTERS,
            count=longest,
        )
    return [stop for stop in stops if stop]


def _read_bias(value: Any) -> Any:
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _wrong("It must map token ids to numbers from -100 to 100")
    if len(value) > MAX_BIASES:
        raise _wrong("At most {limit} tokens are allowed, got {count}", limit=MAX_BIASES, count=len(value))
    for token, bias in value.items():
        if not re.fullmatch(r"[0-9]{1,9}", token):
            raise _wrong("A key must be a token id, got {token}", token=repr(token[:40]))
        if isinstance(bias, bool) or not isinstance(bias, (int, float)) or not -100 <= bias <= 100:
            raise _wrong("The bias of token {token} must be a number from -100 to 100", token=token)
    return value


def _text_format_only(value: Any) -> Any:
    if value is not None and (not isinstance(value, dict) or value.get("type") != "text"):
        raise _wrong("Replies are plain text. Leave it out or send the type text")
    return value


def _text_mode_only(value: Any) -> Any:
    if value not in (None, ["text"]):
        raise _wrong('Replies are plain text. Leave it out or send ["text"]')
    return value


def _no_audio(value: Any) -> Any:
    if value is not None:
        raise _wrong("Replies are plain text, not sound. Leave it out")
    return value


def _no_forced_call(value: Any) -> Any:
    if value not in (None, "auto", "none"):
        raise _wrong("The model cannot call functions. Leave it out or send auto or none")
    return value


class RequestModel(BaseModel):
    """Base of requests. Unknown fields are kept for X-Ignored; `"1"` and `true` are not numbers."""

    model_config = ConfigDict(extra="allow", strict=True)

    @property
    def unknown(self) -> Mapping[str, Any]:
        """Fields that this server does not know."""
        return self.model_extra or {}


CONTENT_SCHEMA = {
    "anyOf": [
        {"type": "string"},
        {
            "type": "array",
            "maxItems": MAX_PARTS,
            "items": {
                "type": "object",
                "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
                "required": ["type", "text"],
            },
        },
        {"type": "null"},
    ]
}


class Message(RequestModel):
    """Message of the history. The content of a message that is left out is not checked; a system prompt is text or None."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Annotated[Any, WithJsonSchema(CONTENT_SCHEMA)] = None

    @model_validator(mode="after")
    def check_content(self) -> Message:
        """Replace the content by its text, or None."""
        if self.role in SYSTEM_ROLES:
            self.content = self.content if isinstance(self.content, str) else _text_if_any(self.content)
            return self
        self.content = None if self.role in SKIPPED_ROLES else text_of(self.content)
        if self.role == "user" and self.content is None:
            raise _wrong("A user message needs content")
        return self


def text_of(content: Any) -> str | None:
    """Return the content of a message as one text; null is None.

    Raises:
        PydanticCustomError: It is not text.
    """
    if content is None or isinstance(content, str):
        return content
    if not isinstance(content, list):
        raise _wrong("The content must be a text or a list of text parts")
    if len(content) > MAX_PARTS:
        raise _wrong("A message may have at most {limit} parts, got {count}", limit=MAX_PARTS, count=len(content))
    texts = []
    for number, part in enumerate(content, 1):
        kind = part.get("type") if isinstance(part, dict) else None
        if not isinstance(kind, str):
            raise _wrong("Part {number} of the content must be an object with type and text", number=number)
        if kind != "text":
            raise _wrong("Only text can be read, and part {number} is {kind}", number=number, kind=kind[:40])
        if not isinstance(part.get("text"), str):
            raise _wrong("Part {number} of the content has no text", number=number)
        texts.append(part["text"])
    return "".join(texts)


def _text_if_any(content: Any) -> str | None:
    try:
        return text_of(content)
    except PydanticCustomError:
        return None


class StreamOptions(RequestModel):
    """Options of a streamed response."""

    include_usage: Annotated[bool, _or(False)] = False


Tokens = Annotated[Annotated[int, Field(ge=1)] | None, BeforeValidator(_default_if_minus_one)]
Seed = Annotated[Annotated[int, Field(ge=0, le=MAX_SEED)] | None, BeforeValidator(_default_if_minus_one)]
Penalty = Annotated[float, Field(ge=-2, le=2)] | None


class TemplateOptions(RequestModel):
    """Variables of the chat template, as vLLM and llama.cpp name them."""

    enable_thinking: bool | None = None


class CompletionRequest(RequestModel):
    """Request for replies."""

    model: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MAX_MESSAGES, fail_fast=True)]
    stream: Annotated[bool, _or(False)] = False
    stream_options: StreamOptions | None = None
    n: Annotated[int, _or(1), Field(ge=1, le=MAX_REPLIES)] = 1
    seed: Seed = None
    stop: Annotated[list[str], BeforeValidator(_read_stops, json_schema_input_type=str | list[str] | None)] = []
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, ge=0, le=1)
    top_k: int | None = Field(None, ge=-1)
    min_p: float | None = Field(None, ge=0, le=1)
    top_n_sigma: float | None = Field(None, le=100)
    xtc_probability: float | None = Field(None, ge=0, le=1)
    xtc_threshold: float | None = Field(None, ge=0, le=1)
    dry_multiplier: float | None = Field(None, ge=0, le=100)
    dry_base: float | None = Field(None, ge=1, le=100)
    dry_allowed_length: int | None = Field(None, ge=1)
    presence_penalty: Penalty = None
    frequency_penalty: Penalty = None
    logit_bias: Annotated[dict[str, float], BeforeValidator(_read_bias)] = {}
    variation: Annotated[int, Field(ge=0, le=MAX_VARIATION)] | None = None
    spread: float | None = Field(None, ge=0, le=MAX_SPREAD)
    logprobs: Annotated[bool, _or(False)] = False
    top_logprobs: int | None = Field(None, ge=0, le=20)
    max_tokens: Tokens = None
    max_completion_tokens: Tokens = None
    response_format: Annotated[Any, BeforeValidator(_text_format_only)] = None
    modalities: Annotated[Any, BeforeValidator(_text_mode_only)] = None
    audio: Annotated[Any, BeforeValidator(_no_audio)] = None
    tool_choice: Annotated[Any, BeforeValidator(_no_forced_call)] = None
    function_call: Annotated[Any, BeforeValidator(_no_forced_call)] = None
    chat_template_kwargs: TemplateOptions | None = None

    @model_validator(mode="after")
    def check_variation(self) -> CompletionRequest:
        """Refuse variants with a number above `MAX_VARIATION`."""
        if self.variation is not None and self.variation + self.n - 1 > MAX_VARIATION:
            raise _wrong("variation + n - 1 must be at most {limit}", limit=MAX_VARIATION)
        return self

    @model_validator(mode="after")
    def check_logprobs(self) -> CompletionRequest:
        """Refuse alternatives without log-probabilities, as OpenAI does."""
        if self.top_logprobs is not None and not self.logprobs:
            raise _wrong("top_logprobs needs logprobs: true")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the token counts."""
        return self.stream_options is not None and self.stream_options.include_usage

    def changes(self) -> dict[str, Any]:
        """Return the values that the request sets: fields of `ReplySettings`, and also `variation` and `spread`.

        Values of None are left out.

        Temperature 0, `top_p` 0 and `top_k` 1 leave the most likely token only, so they select the greedy method.
        """
        greedy = (self.temperature is not None and self.temperature < 0.01) or self.top_p == 0 or self.top_k == 1
        limit = self.max_completion_tokens or self.max_tokens
        options = self.chat_template_kwargs
        thinking = "shown" if options is not None and options.enable_thinking else "off"
        changes = {
            "method": "greedy" if greedy else None,
            "temperature": None if greedy else self.temperature,
            "top_p": None if greedy else self.top_p,
            "top_k": None if greedy or self.top_k is None else min(max(self.top_k, 0), MAX_TOKENS),
            "min_p": self.min_p,
            "top_n_sigma": None if self.top_n_sigma is None else max(self.top_n_sigma, 0),
            "xtc_probability": self.xtc_probability,
            "xtc_threshold": self.xtc_threshold,
            "dry_multiplier": self.dry_multiplier,
            "dry_base": self.dry_base,
            "dry_allowed_length": None if self.dry_allowed_length is None else min(self.dry_allowed_length, MAX_TOKENS),
            "presence_penalty": self.presence_penalty,
            "frequency_penalty": self.frequency_penalty,
            "logit_bias": self.logit_bias or None,
            "top_logprobs": (self.top_logprobs or 0) if self.logprobs else None,
            "max_reply_tokens": None if limit is None else min(limit, MAX_TOKENS),
            "variation": self.variation,
            "spread": self.spread,
            "thinking": None if options is None or options.enable_thinking is None else thinking,
        }
        return {name: value for name, value in changes.items() if value is not None}

    def ignored(self) -> list[str]:
        """Return the names of the fields that are given and have no effect."""
        given = {**self.unknown, "tool_choice": self.tool_choice, "function_call": self.function_call}
        given["stream_options"] = self.stream_options is not None and not self.stream
        if self.chat_template_kwargs is not None:
            given |= self.chat_template_kwargs.unknown
        for message in self.messages:
            if message.role not in SKIPPED_ROLES:
                given |= {name: value for name, value in message.unknown.items() if name != "reasoning_content"}
        names = [name for name, value in given.items() if value not in (None, False, "", [], {})]
        readable = list(islice(filter(_NAME.fullmatch, names), MAX_NAMES))
        others = len(names) - len(readable)
        return [*readable, f"{others} other fields"] if others else readable


def parse(body: bytes) -> CompletionRequest:
    """Return the request that a body contains.

    Raises:
        ApiError: The body is not a request; the message names the first fault.
    """
    if has_too_many_values(body):
        raise ApiError(400, f"body: it has more than {MAX_MARKS} brackets and commas outside of its texts. Send less.")
    try:
        body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ApiError(
            400,
            f"body: it is not UTF-8 (byte 0x{body[error.start]:02x} at position {error.start}). Send the JSON in UTF-8; a"
            " Windows console sends GBK, so save it to a file and use curl --data-binary @FILE.",
        ) from None
    try:
        return CompletionRequest.model_validate_json(body.removeprefix(_UTF8_MARK))
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        if first["type"] == "json_invalid":
            raise ApiError(400, f"body: it is not JSON ({first['msg'].removeprefix('Invalid JSON: ')}).") from None
        field = ".".join(map(str, first["loc"]))
        raise ApiError(400, f"{field or 'body'}: {first['msg']}.", param=field or None) from None
