"""A small server of OpenAI's chat completions, by the standard library; one reply is decoded at a time."""

from __future__ import annotations

import json
import re
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from http.server import BaseHTTPRequestHandler
from io import BufferedReader
from typing import Any

from xianliao_lite.bot import Bot, LiteError, Reply
from xianliao_lite.connections import BODY_SECONDS, HEADER_SECONDS, SEND_SECONDS, Arriving, BoundedServer, fault

MAX_BODY, MAX_MESSAGES, MAX_NUMBER = 1 << 20, 512, 1e18
DRAIN_BYTES, DRAIN_SECONDS = 4 << 20, 2
"""Maximum size of a refused body that is read and discarded, and seconds for reading it."""
LONG_CHARACTERS, TURN_CHARACTERS = 20_000, 100
"""Bodies of more than `LONG_CHARACTERS` bytes are parsed one at a time, and longer histories are checked for signs of a
crisis one at a time, while other requests are decoded. The length of a history is that of its turns, plus
`TURN_CHARACTERS` per turn."""
LOCAL = re.compile(r"(127\.0\.0\.1|localhost|\[::1\])(:\d{1,5})?", re.IGNORECASE)
OWN_SITES = frozenset({"same-origin", "none"})
"""Values of Sec-Fetch-Site that a browser sends if no page of another site has caused the request."""
FIELDS = {
    **{name: name for name in ("temperature", "top_p", "top_k", "min_p", "seed")},
    **{"max_tokens": "max_reply_tokens", "max_completion_tokens": "max_reply_tokens"},
}
"""Fields of a request that are settings of the reply, or its seed."""


class RequestError(Exception):
    """A request that cannot be answered.

    Attributes:
        status: HTTP status.
    """

    def __init__(self, status: int, text: str):
        super().__init__(text)
        self.status = status


def to_turns(messages: Any) -> list[str]:
    """Return the turns of a conversation, the user's first; system messages are left out.

    Raises:
        RequestError: The messages are not a conversation, or the last one is not the user's.
    """
    if not isinstance(messages, list) or not messages:
        raise RequestError(400, "messages must be a list of messages.")
    if len(messages) > MAX_MESSAGES:
        raise RequestError(400, f"messages must have at most {MAX_MESSAGES} messages.")
    turns: list[list[str]] = []
    for message in messages:
        role = message.get("role") if isinstance(message, dict) else None
        if role not in ("system", "developer", "user", "assistant"):
            raise RequestError(400, "Every message needs the role system, user or assistant.")
        content = message.get("content")
        if isinstance(content, list):
            parts = [part.get("text", "") for part in content if isinstance(part, dict)]
            content = "".join(parts) if all(isinstance(part, str) for part in parts) else None
        if not isinstance(content, str):
            raise RequestError(400, "The content of a message must be text.")
        if role in ("system", "developer") or (role == "assistant" and not turns):
            continue
        if (len(turns) % 2 == 1) == (role == "user"):
            turns[-1].append(content)
        else:
            turns.append([content])
    if len(turns) % 2 == 0:
        raise RequestError(400, "The last message must be the user's.")
    return ["\n".join(parts) for parts in turns]


def settings_of(body: dict[str, Any]) -> dict[str, Any]:
    """Return seed and settings of a request.

    Raises:
        RequestError: The value of a field is not a number.
    """
    settings: dict[str, Any] = {}
    for name, setting in FIELDS.items():
        value = body.get(name)
        if value is None:
            continue
        if not isinstance(value, (int, float)) or isinstance(value, bool) or abs(value) > MAX_NUMBER:
            raise RequestError(400, f"{name} must be a number.")
        settings[setting] = value
    if settings.get("temperature") == 0:
        del settings["temperature"]
        settings["method"] = "greedy"
    if body.get("n", 1) != 1:
        raise RequestError(400, "n must be 1.")
    return settings


class Handler(BaseHTTPRequestHandler):
    """Routes /v1/chat/completions, /v1/models and /health."""

    server: Server
    protocol_version = "HTTP/1.1"
    timeout = SEND_SECONDS

    def setup(self) -> None:
        """Read through `Arriving`."""
        super().setup()
        self.rfile.close()
        self._arriving = Arriving(self.connection)
        self.rfile = BufferedReader(self._arriving)

    def handle_one_request(self) -> None:
        """Give each request its time for the headers."""
        self._arriving.deadline = time.monotonic() + HEADER_SECONDS
        super().handle_one_request()

    def log_message(self, format: str, *args: Any) -> None:
        """Write nothing: a log would hold nothing but addresses."""

    def do_GET(self) -> None:
        if not self._is_admitted():
            return
        if self.path == "/v1/models":
            self._send(200, {"object": "list", "data": [{"id": self.server.bot.name, "object": "model", "created": 0}]})
        elif self.path == "/health":
            self._send(200, {"status": "ok"})
        else:
            self._fail(404, "Unknown path; use POST /v1/chat/completions.")

    def do_POST(self) -> None:
        if not self._is_admitted():
            return
        try:
            if self.path != "/v1/chat/completions":
                raise RequestError(404, "Unknown path; use POST /v1/chat/completions.")
            content = self._body()
            with self.server.reading if len(content) > LONG_CHARACTERS else nullcontext():
                body = _parse(content)
                turns, settings = to_turns(body.get("messages")), settings_of(body)
            seed = settings.pop("seed", None)
            is_long = sum(len(turn) + TURN_CHARACTERS for turn in turns) > LONG_CHARACTERS
            with self.server.reading if is_long else nullcontext():
                replies = self.server.bot.stream(turns, seed, **settings) if is_long else None
                with self.server.decoding:
                    replies = replies or self.server.bot.stream(turns, seed, **settings)
                    if body.get("stream"):
                        self._stream(next(replies), replies)  # a wrong request fails before the headers
                        return
                    *_, reply = replies
                completion = self._completion(turns, reply)
            self._send(200, completion)
        except RequestError as error:
            self._fail(error.status, str(error))
        except LiteError as error:
            self._fail(400, str(error))
        except (BrokenPipeError, ConnectionResetError, TimeoutError):
            self.close_connection = True

    def _is_admitted(self) -> bool:
        """Refuse requests of pages from other sites, also if their name leads to this machine, and requests whose end is
        unclear: the bytes after it would be read as another request, with headers that a page may choose.
        """
        hosts, origin = self.headers.get_all("Host", []), self.headers.get("Origin")
        if len(hosts) != 1 or (self.server.is_local and not LOCAL.fullmatch(hosts[0])):
            self._fail(403, "This server answers requests to localhost only.")
        elif _is_foreign(origin, hosts[0]) or not OWN_SITES.issuperset(self.headers.get_all("Sec-Fetch-Site", [])):
            self._fail(403, "This server answers no pages of other sites.")
        elif "Transfer-Encoding" in self.headers or (self.command == "GET" and "Content-Length" in self.headers):
            self._fail(400, "The request needs a Content-Length if it is a POST, and no body otherwise.")
        else:
            return True
        return False

    def _body(self) -> bytes:
        self._arriving.deadline = time.monotonic() + BODY_SECONDS
        kind, size = self.headers.get("Content-Type", ""), ",".join(self.headers.get_all("Content-Length", []))
        if not re.fullmatch("[0-9]{1,18}", size):
            raise RequestError(400, f"The request needs one Content-Length: a number, at most {MAX_BODY}.")
        if int(size) > MAX_BODY:
            self._drain(int(size))
            raise RequestError(413, f"The request needs a Content-Length of at most {MAX_BODY}.")
        try:
            content = self.rfile.read(int(size))
        except TimeoutError:
            raise RequestError(408, f"The body did not arrive whole within {BODY_SECONDS} s.") from None
        if kind.split(";")[0].strip().lower() != "application/json":
            raise RequestError(415, "The request must be of Content-Type application/json.")
        return content

    def _drain(self, size: int) -> None:
        """Read and discard a refused body that is a little too long, in small pieces: a client that is still sending
        would miss the answer.
        """
        if size > DRAIN_BYTES:
            return
        self._arriving.deadline = time.monotonic() + DRAIN_SECONDS
        with suppress(TimeoutError):
            while size > 0 and (piece := self.rfile.read1(min(size, 1 << 16))):
                size -= len(piece)

    def _head(self) -> dict[str, Any]:
        return {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": self.server.bot.name}

    def _completion(self, turns: list[str], reply: Reply) -> dict[str, Any]:
        bot, message = self.server.bot, {"role": "assistant", "content": reply.text}
        prompt, made = 1 + sum(bot.count_tokens(turn) + 1 for turn in turns), len(reply.token_ids) + 1
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": _finish(reply)}
        usage = {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}
        extra = {"seed": reply.seed, "stop_reason": reply.stop_reason}
        return {**self._head(), "object": "chat.completion", "choices": [choice], "usage": usage, **extra}

    def _stream(self, first: Reply, replies: Iterator[Reply]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Cache-Control", "no-store")
        self.send_header("Connection", "close")
        self.end_headers()
        self.close_connection = True
        head, sent, reply = {**self._head(), "object": "chat.completion.chunk"}, "", first
        self._chunk(head, {"role": "assistant", "content": ""}, None)
        for reply in _chain(first, replies):
            if reply.text != sent:
                self._chunk(head, {"content": reply.text[len(sent) :]}, None)
                sent = reply.text
        self._chunk(head, {}, _finish(reply))
        self.wfile.write(b"data: [DONE]\n\n")

    def _chunk(self, head: dict[str, Any], delta: dict[str, str], finish: str | None) -> None:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        content = json.dumps({**head, "choices": [choice]}, ensure_ascii=False)
        self.wfile.write(f"data: {content}\n\n".encode())
        self.wfile.flush()

    def _fail(self, status: int, text: str) -> None:
        self._send(status, fault(text))

    def _send(self, status: int, content: dict[str, Any]) -> None:
        encoded = json.dumps(content, ensure_ascii=False).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(encoded)))
        if status >= 400:  # a body that was not read must not be taken for the next request
            self.send_header("Connection", "close")
        self.end_headers()
        self.wfile.write(encoded)


def _parse(content: bytes) -> dict[str, Any]:
    try:
        body = json.loads(content)
    except (ValueError, RecursionError):
        raise RequestError(400, "The body is not JSON.") from None
    if not isinstance(body, dict):
        raise RequestError(400, "The body must be a JSON object.")
    return body


def _is_foreign(origin: str | None, host: str) -> bool:
    return origin is not None and origin.partition("://")[2].lower() != host.lower()


def _chain(first: Reply, rest: Iterator[Reply]) -> Iterator[Reply]:
    yield first
    yield from rest


def _finish(reply: Reply) -> str:
    return {"floor": "length", "limit": "length", "safety": "content_filter"}.get(reply.stop_reason, "stop")


class Server(BoundedServer):
    """The server of a bot; `serve_forever` runs it.

    Args:
        bot: The bot.
        host: Address to listen at. Other addresses than loopback are for networks in which everyone may use the bot:
            the server has neither keys nor a rate limit.
        port: Port; 0 takes a free one.
    """

    def __init__(self, bot: Bot, host: str = "127.0.0.1", port: int = 8000):
        super().__init__(host, port, Handler)
        self.bot, self.decoding, self.reading = bot, threading.Lock(), threading.Lock()
        self.is_local = host in ("127.0.0.1", "localhost", "::1")
