"""The checks that every request passes before any route sees it, in the order of their cost.

Is the server closing? Does the request mean this server, and does it come from this server's own page or an allowed one
(`ui.server.origins`)? Is its route open (`ui.server.page_routes`)? Does its sender ask too often? Is its body too large, too slow, or one
that names files? Each answer also gets its security headers here, and one line of the log when it has ended.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.api.schemas import ApiError, to_response
from ui.server import page_routes
from ui.server.access import Access
from ui.server.logs import log_event
from ui.server.metrics import Metrics
from ui.server.origins import Origins

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
        origins: The names of this server and the web sites that may use it.
        closing: Nothing new is answered any more.
    """

    access: Access
    metrics: Metrics
    rate: RateLimit
    body_bytes: int
    body_seconds: float
    origins: Origins = field(default_factory=Origins)
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
        headers = Headers(scope=scope)

        async def send_and_note(message: Message) -> None:
            if message["type"] == "http.response.start":
                record.status = message["status"]
                sent = message.get("headers", [])
                message = {**message, "headers": self.limits.origins.secured(scope, headers, sent)}
            await send(message)

        try:
            try:
                response = self._check(scope, headers)
                body = await self._read(scope, headers, receive) if response is None else None
            except ApiError as error:
                self.limits.metrics.errors.labels(str(error.status)).inc()
                response = to_response(error, page=not scope["path"].startswith("/v1/"))
                body = None
                if _may_have_body(scope, headers):  # what is still to come will not be read
                    response.headers["Connection"] = "close"
            if response is not None:
                await response(scope, receive, send_and_note)
            elif body is not None:
                _narrow(scope)
                await self.app(scope, _replay(body, receive), send_and_note)
        finally:
            _log(scope, record, time.perf_counter() - started)

    def _check(self, scope: Scope, headers: Headers) -> Response | None:
        """Decide from the headers alone; a response is returned if nothing else has to answer.

        Raises:
            ApiError: The request is refused.
        """
        limits, path = self.limits, scope["path"]
        if limits.closing:
            raise ApiError(503, "The server is shutting down; try again when it is back.", "server_error", "closing")
        limits.origins.check_host(headers)
        if (answer := limits.origins.preflight(scope, headers)) is not None:
            return Response(status_code=204, headers=answer)
        limits.origins.check_source(scope, headers)
        if page_routes.is_gradio(path):
            page_routes.check_route(scope["method"], path)
        who = limits.access.who(headers.get("authorization"))
        cost = self._cost(scope["method"], path, who)
        if cost:
            sender = who or (scope.get("client") or ("?",))[0]
            seconds = limits.rate.take(sender, cost)
            if seconds:
                message = f"That is more than {limits.rate.per_minute} requests a minute; try again in {seconds} s."
                raise ApiError(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=seconds)
        if scope["method"] != "POST" and _may_have_body(scope, headers):
            raise ApiError(400, "Only a POST request may have a body.", code="unexpected_body")
        return None

    def _cost(self, method: str, path: str, who: str | None) -> float:
        """What a request counts; whoever may not see the counters counts too, or keys could be tried there for ever."""
        tried = path.rstrip("/") == "/metrics" and who is None and not self.limits.access.is_open
        if tried or path.startswith("/v1/"):
            return 1.0
        if method != "POST":
            return 0.0
        return 1.0 if path.startswith("/login") else PAGE_SHARE

    async def _read(self, scope: Scope, headers: Headers, receive: Receive) -> bytes | None:
        """The whole body, or None when the client left; bodies without a stated length are counted as they come."""
        most = self.limits.body_bytes
        stated = headers.get("content-length", "0")
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
                        break
        except TimeoutError:
            message = f"The request did not arrive whole within {self.limits.body_seconds:g} s."
            raise ApiError(408, message, code="timeout") from None
        path = scope["path"]
        if scope["method"] == "POST" and page_routes.is_gradio(path):
            return page_routes.checked_body(path, headers.get("content-type", ""), bytes(body))
        return bytes(body)


def _may_have_body(scope: Scope, headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _narrow(scope: Scope) -> None:
    """Take out of a request what no route may see: headers that rename the server and parameters the page does not use."""
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name != b"x-forwarded-host"]
    if page_routes.is_gradio(scope["path"]):
        scope["query_string"] = page_routes.checked_query(scope["method"], scope["query_string"])


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
