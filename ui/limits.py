"""What every request passes first: is the server closing, does its sender ask too often, is it too large or too slow.

One line of the log about each request is written here too, when its answer has ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.access import Access
from ui.completions import ApiError, to_response
from ui.logs import log_event
from ui.metrics import Metrics

MOST_SENDERS = 10_000
"""Senders whose requests are counted; who has been quiet for longest is forgotten first."""

PAGE_SHARE = 0.1
"""What a request of the page counts: one message there is several of them."""


class RateLimit:
    """Requests a minute for each sender, as a bucket that is full at first and fills evenly.

    Args:
        per_minute: What is allowed; 0 allows everything.
        clock: Seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # sender -> (requests left, when)

    def take(self, sender: str, cost: float = 1) -> int:
        """0 when the sender may go on, else the seconds until then."""
        if not self.per_minute:
            return 0
        now, rate = self._clock(), self.per_minute / 60
        left, then = self._left.get(sender, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * rate)
        allowed = left >= cost
        self._left[sender] = (left - cost if allowed else left, now)
        self._left.move_to_end(sender)
        if len(self._left) > MOST_SENDERS:
            self._left.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((cost - left) / rate))


@dataclass
class Limits:
    """The limits of one server.

    Attributes:
        closing: Nothing new is answered any more.
    """

    access: Access
    metrics: Metrics
    rate: RateLimit
    body_bytes: int
    body_seconds: float
    closing: bool = False


@dataclass
class Record:
    """What the log will say of a request."""

    status: int = 500
    fields: dict = field(default_factory=dict)


class Gate:
    """The middleware."""

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, record = time.perf_counter(), Record()
        scope.setdefault("state", {})["record"] = record

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
            await send(message)

        try:
            try:
                self._check(scope)
                body = await self._read(scope, receive)
            except ApiError as error:
                self.limits.metrics.errors.labels(str(error.status)).inc()
                response = to_response(error, page=not scope["path"].startswith("/v1/"))
                if error.status in (408, 413):  # what is still to come will not be read
                    response.headers["Connection"] = "close"
                await response(scope, receive, send_and_note)
                return
            if body is not None:
                await self.app(scope, _replay(body, receive), send_and_note)
        finally:
            _log(scope, record, time.perf_counter() - started)

    def _check(self, scope: Scope) -> None:
        limits, path = self.limits, scope["path"]
        if limits.closing:
            raise ApiError(503, "The server is shutting down; try again when it is back.", "server_error", "closing")
        header = next((value.decode("latin-1") for name, value in scope["headers"] if name == b"authorization"), None)
        who = limits.access.who(header)
        cost = self._cost(scope["method"], path, who)
        if not cost:
            return
        sender = who or (scope.get("client") or ("?",))[0]
        seconds = limits.rate.take(sender, cost)
        if seconds:
            message = f"That is more than {limits.rate.per_minute} requests a minute; try again in {seconds} s."
            raise ApiError(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=seconds)

    def _cost(self, method: str, path: str, who: str | None) -> float:
        """What a request counts; whoever may not see the counters counts too, or keys could be tried there for ever."""
        tried = path.rstrip("/") == "/metrics" and who is None and not self.limits.access.is_open
        if tried or path.startswith("/v1/"):
            return 1.0
        if method != "POST":
            return 0.0
        return 1.0 if path.startswith("/login") else PAGE_SHARE

    async def _read(self, scope: Scope, receive: Receive) -> bytes | None:
        """The whole body, or None when the client left; bodies without a stated length are counted as they come."""
        most = self.limits.body_bytes
        stated = next((value for name, value in scope["headers"] if name == b"content-length"), b"0")
        too_large = ApiError(413, f"A request may have at most {most} bytes.", code="body_too_large")
        if not stated.isdigit() or int(stated) > most:
            raise too_large
        body = bytearray()
        try:
            async with asyncio.timeout(self.limits.body_seconds):
                while True:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > most:
                        raise too_large
                    if not message.get("more_body"):
                        return bytes(body)
        except TimeoutError:
            message = f"The request did not arrive whole within {self.limits.body_seconds:g} s."
            raise ApiError(408, message, code="timeout") from None


def _replay(body: bytes, receive: Receive) -> Receive:
    """A `receive` that first gives the body that was read, then what comes after it."""
    given = False

    async def replayed() -> Message:
        nonlocal given
        if given:
            return await receive()
        given = True
        return {"type": "http.request", "body": body, "more_body": False}

    return replayed


def _log(scope: Scope, record: Record, seconds: float) -> None:
    """One line about a reply, a request of the API or one that failed; the page's many files are not worth one.

    The route is a pattern, not a path: paths are text that people can write.
    """
    path = scope["path"]
    if not path.startswith("/v1/") and record.status < 400:
        return
    route = getattr(scope.get("route"), "path", None) or ("/v1" if path.startswith("/v1/") else "page")
    level = "error" if record.status >= 500 else "warning" if record.status >= 400 else "info"
    event = "reply" if "tokens" in record.fields else "request"
    shown = {"method": scope["method"], "route": route, "status": record.status, "seconds": round(seconds, 4)}
    log_event(event, level, **shown, **record.fields)
