"""Middleware with the checks that every request passes before a route sees it, the cheapest checks first.

Headers alone decide: the body has one length; the server is not closing; the request is meant for this server and comes from
its own page or an allowed web site (`ui.server.origins`); its route is open (`ui.server.page_routes`); its sender is
within the rate limit; its credentials are valid. Only then is the body read, within bounds on its size, its time and the
size of all bodies that are arriving, and refused if it names a file. Each answer gets security headers here; API requests
and failed requests get one line in the log.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from typing import Any

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chatbot.chat.worker import WorkerError
from ui.api.schemas import ApiError, as_api_error, to_response
from ui.server import page_routes, paths
from ui.server.limits import BodyReader, Limits
from ui.server.logs import EqualLines, log_event
from ui.server.work import SENDER, OverloadError
from ui.studio.options import check_local

PAGE_SHARE = 0.1
"""Cost of one request of the page, in requests: one message on the page takes several."""

FILE_SHARE = 0.01
"""Cost of one script, style sheet or font of the page: the first load of the page requests about a hundred such files."""

RENAMING_HEADERS = (b"x-forwarded-host", b"x-gradio-server")
"""Headers in which a client could give Gradio another name of the server."""

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
THREAD_BYTES = 16 * 1024
"""Larger bodies are checked in a thread, so that other requests are answered meanwhile."""


@dataclass
class Record:
    """Content of the log line of a request."""

    status: int = 500
    fields: dict = field(default_factory=dict)


class Gate:
    """The middleware.

    Args:
        app: Application behind it.
        limits: Limits of the server.
    """

    def __init__(self, app: ASGIApp, limits: Limits):
        self.app, self.limits = app, limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Check a request and pass it on, or refuse it."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        started, record = time.perf_counter(), Record()
        scope.setdefault("state", {})["record"] = record
        headers, reader = Headers(scope=scope), BodyReader(receive, self.limits.turns)

        async def send_secured(message: Message) -> None:
            if message["type"] == "http.response.start":
                reader.release()
                record.status = message["status"]
                sent = message.get("headers", [])
                if record.status in (429, 503) and not any(name.lower() == b"retry-after" for name, _ in sent):
                    sent = [*sent, (b"retry-after", b"1")]
                message = {**message, "headers": self.limits.origins.secured(scope, headers, sent)}
            await send(message)

        try:
            try:
                _check_framing(headers)
                preflight = self._check_origin(scope, headers)
                body = await self._admit(scope, headers, reader) if preflight is None else None
            except ApiError as error:
                await self._refuse(error, scope, headers, reader, send_secured)
                return
            if preflight is not None:
                await preflight(scope, receive, send_secured)
            elif body is not None:
                _narrow(scope)
                await self.app(scope, _replay(body, receive), send_secured)
            else:  # the body broke off; the client gets uvicorn's 400 if it still listens
                record.status = 400
        finally:
            reader.release()
            if (sender := scope["state"].get("stream_of")) is not None:
                self.limits.streams.end(sender)
            _log(scope, record, time.perf_counter() - started, self.limits.refused_lines)

    def _check_origin(self, scope: Scope, headers: Headers) -> Response | None:
        """Check that the request means this server; return the answer to a CORS preflight.

        Raises:
            ApiError: The request is refused.
        """
        limits = self.limits
        if limits.closing:
            raise ApiError(
                503, "The server is shutting down. Try again after it has restarted.", "server_error", "closing"
            )
        if limits.options.studio is not None:
            check_local(scope, headers)
        limits.origins.check_host(headers)
        if (answer := limits.origins.preflight(scope, headers)) is not None:
            return Response(status_code=204, headers=answer)
        limits.origins.check_source(scope, headers)
        return None

    async def _admit(self, scope: Scope, headers: Headers, reader: BodyReader) -> bytes | None:
        """Check route, rate and credentials, then read and check the body. Return None if the client left.

        Raises:
            ApiError: The request is refused.
        """
        limits, method, path = self.limits, scope["method"], scope["path"]
        is_page = paths.is_page(path)
        if path.startswith("/healthz") and method not in ("GET", "HEAD"):
            raise ApiError(405, "Use GET for /healthz.", code="method_not_allowed")
        if is_page:
            page_routes.check_route(method, path)
            scope["query_string"] = page_routes.checked_query(method, scope["query_string"])
        identity = limits.access.identify(headers.get("authorization"))
        user = scope["state"]["user"] = limits.page.user_of(headers)
        self._charge(scope, identity or (f"user {user}" if user else None))
        if is_page and limits.page.needs_login and user is None and not page_routes.is_public(path):
            raise ApiError(401, "Log in on the page first.", code="not_logged_in")
        if paths.needs_key(path) and not limits.access.is_open and identity is None:
            raise limits.access.refusal()
        if is_page and method != "POST":
            page_routes.check_results(path, scope["query_string"], user, limits.page.has_session)
            if page_routes.is_stream(path):
                limits.streams.begin(SENDER.get())
                scope["state"]["stream_of"] = SENDER.get()
        if method != "POST" and _may_have_body(headers):
            raise ApiError(400, "Only a POST request may have a body.", code="unexpected_body")
        trusted = identity is not None or user is not None
        limit = page_routes.LOGIN_BYTES if path.startswith(("/login", "/logout")) else limits.body_bytes(trusted)
        stated = headers.get("content-length", "0")
        body = await reader.read(limit, stated, limits.options.body_seconds, limits.arriving, trusted)
        if body is None or method != "POST" or not is_page:
            return body
        scope["state"]["body_bytes"] = len(body)
        arguments = (path, headers.get("content-type", ""), body, limits.page.functions)
        if len(body) <= THREAD_BYTES:
            return page_routes.checked_body(*arguments)
        if not limits.page.takes(len(body)):
            raise as_api_error(OverloadError())
        try:
            return await limits.pool.run_async(len(body), page_routes.checked_body, *arguments)
        except (OverloadError, WorkerError) as error:
            raise as_api_error(error) from None

    def _charge(self, scope: Scope, identity: str | None) -> None:
        """Count the request for its sender, and let its route count the replies that the body asks for.

        Raises:
            ApiError: 429, the sender asks too often.
        """
        sender = identity or (scope.get("client") or ("?",))[0]
        SENDER.set(sender)
        self._charge_sender(sender, self._cost(scope["method"], scope["path"], identity))
        # one reply was counted before the body was read; a cost above a full bucket could never be paid
        most = self.limits.rate.per_minute
        scope["state"]["count_replies"] = lambda count: self._charge_sender(sender, min(count, most) - 1)

    def _charge_sender(self, sender: str, cost: float) -> None:
        """Take a cost from the requests that a sender has left.

        Raises:
            ApiError: 429, the sender asks too often.
        """
        rate = self.limits.rate
        seconds = rate.charge(sender, cost) if cost > 0 else 0
        if seconds:
            message = f"The limit is {rate.per_minute} requests per minute. Try again in {seconds} s."
            raise ApiError(429, message, "rate_limit_error", "rate_limit_exceeded", retry_after=seconds)

    def _cost(self, method: str, path: str, identity: str | None) -> float:
        """Return the cost of a request. A guess at credentials costs a whole request wherever it is made."""
        if path == "/healthz":
            return 0.0
        guess = paths.needs_key(path) and identity is None and not self.limits.access.is_open
        if guess or path.startswith(("/v1/", "/login")):
            return 1.0
        return FILE_SHARE if method != "POST" and page_routes.is_file(path) else PAGE_SHARE

    async def _refuse(self, error: ApiError, scope: Scope, headers: Headers, reader: BodyReader, send: Send) -> None:
        """Send an error. If the body has not arrived, send it at once, then drain the body and close the connection.

        A server that closes a connection with unread data resets it, and the client may lose the answer.
        """
        self.limits.metrics.errors.labels(str(error.status)).inc()
        response = to_response(error, page=not scope["path"].startswith("/v1/"))
        unread = _may_have_body(headers) and not reader.complete
        if unread:
            response.headers["Connection"] = "close"
        await send({"type": "http.response.start", "status": response.status_code, "headers": response.raw_headers})
        await send({"type": "http.response.body", "body": response.body, "more_body": unread})
        if unread:
            await reader.drain()
            await send({"type": "http.response.body", "body": b"", "more_body": False})


def _check_framing(headers: Headers) -> None:
    """Refuse a body whose end a proxy in front may see elsewhere (request smuggling, RFC 9112, section 6.3).

    Raises:
        ApiError: The request has both a length and a transfer coding.
    """
    if "content-length" in headers and "transfer-encoding" in headers:
        message = "Send either Content-Length or Transfer-Encoding, not both."
        raise ApiError(400, message, code="ambiguous_length")


def _may_have_body(headers: Headers) -> bool:
    return headers.get("content-length", "0") != "0" or "transfer-encoding" in headers


def _narrow(scope: Scope) -> None:
    """Remove headers that would rename the server, and the final slash of a path that is not part of the page."""
    scope["headers"] = [(name, value) for name, value in scope["headers"] if name not in RENAMING_HEADERS]
    if not paths.is_page(scope["path"]):
        scope["path"] = scope["path"].rstrip("/")


def _replay(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that first returns the body, which was read before."""
    delivered = False

    async def replayed() -> Message:
        nonlocal delivered, body
        if delivered:
            return await receive()
        delivered, given, body = True, body, b""  # the memory of a large body is freed as soon as it is parsed
        return {"type": "http.request", "body": given, "more_body": False}

    return replayed


def _log(scope: Scope, record: Record, seconds: float, refused_lines: EqualLines) -> None:
    """Write one line for an API request or a failed request; the many files of the page get none.

    The route is a pattern, not a path, because a client chooses the text of a path. Equal lines about refused requests of
    one client are throttled.
    """
    path = scope["path"]
    if not path.startswith("/v1/") and record.status < 400:
        return
    route = getattr(scope.get("route"), "path", None) or ("/v1" if path.startswith("/v1/") else "page")
    level = "error" if record.status >= 500 else "warning" if record.status >= 400 else "info"
    event = "reply" if "tokens" in record.fields else "request"
    method = scope["method"] if scope["method"] in METHODS else "other"  # a client chooses this text, too
    request: dict[str, Any] = {"method": method, "route": route, "status": record.status, "seconds": round(seconds, 4)}
    if record.status < 400 or event == "reply":
        log_event(event, level, **request, **record.fields)
    else:
        refused_lines.log((scope.get("client") or ("?",))[0], event, level, **request, **record.fields)
