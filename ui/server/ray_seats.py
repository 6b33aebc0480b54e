"""Middleware that sends each browser and each conversation to the same replica of Ray Serve.

The page needs this because a message and its answer are two requests that must reach the same replica. The proxy selects
the replica by X-Conversation-Id, which browsers do not send. `Seats` runs in the proxy: it sets a cookie at the first
request of a browser and passes its value on as X-Conversation-Id, as deploy/nginx.conf does. Requests to the API are not
changed.

`ReplicaName` runs in the replica: it adds the name of the replica to the X-Conversation-Id of the answer
(`NAME@replica-ID`). Requests with this value are sent to the same replica, even if the number of replicas has changed
(`ui.server.ray_app.ReplicaRouter`). The client sends the value, so all proxies of a cluster choose the same replica.

Ray imports `Seats` in the process of its proxy, so both variables must be set where Ray is started:

    export RAY_SERVE_SESSION_ID_HEADER_KEY=x-conversation-id
    export RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH=ui.server.ray_seats:middlewares
"""

from __future__ import annotations

import re
import secrets

from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import cookie_parser
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ui.server.paths import is_page

COOKIE = "xianliao_seat"
HEADER = "X-Conversation-Id"
MAX_NAME = 64
"""Maximum number of characters of a conversation's name that an answer repeats."""

_MARK = "@replica-"
_REPLICA = re.compile(rf"(.*){_MARK}([a-z0-9]{{1,32}})", re.DOTALL)
_SEAT = re.compile(rf"([0-9a-f]{{32}})({_MARK}[a-z0-9]{{1,32}})?")


def middlewares() -> list[Middleware]:
    """Return the middleware in the form that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH requires."""
    return [Middleware(Seats)]


def split_replica(value: str) -> tuple[str, str | None]:
    """Split a value of X-Conversation-Id into the conversation's name and the replica, None if it names none."""
    match = _REPLICA.fullmatch(value)
    return (value, None) if match is None else (match[1], match[2])


class Seats:
    """Middleware of the proxy.

    Args:
        app: Ray Serve's proxy.
    """

    def __init__(self, app: ASGIApp):
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on; a request of the page gets the value of the browser's cookie as its X-Conversation-Id."""
        if scope["type"] != "http" or not is_page(scope["path"]):
            await self.app(scope, receive, send)
            return
        sent = cookie_parser(Headers(scope=scope).get("cookie", "")).get(COOKIE, "")
        seat = sent if _SEAT.fullmatch(sent) else secrets.token_hex(16)
        scope = {**scope, "headers": list(scope["headers"])}
        MutableHeaders(scope=scope)[HEADER] = seat

        async def send_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", []))}
                headers = MutableHeaders(scope=message)
                answered = headers.get(HEADER, "")
                del headers[HEADER]
                value = answered if _SEAT.fullmatch(answered) else seat
                if value != sent:
                    headers.append("set-cookie", f"{COOKIE}={value}; Path=/; HttpOnly; SameSite=Lax")
            await send(message)

        await self.app(scope, receive, send_cookie)


class ReplicaName:
    """Middleware of a replica.

    Args:
        app: The server.
        replica: Ray's id of the replica.
    """

    def __init__(self, app: ASGIApp, replica: str):
        self.app, self.replica = app, replica

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on without the name of a replica, and name this replica in the answer."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope = {**scope, "headers": list(scope["headers"])}
        headers = MutableHeaders(scope=scope)
        name, _ = split_replica(headers.get(HEADER, ""))
        if HEADER in headers:
            headers[HEADER] = name
        if not name:
            del headers[HEADER]

        async def send_name(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", []))}
                headers = MutableHeaders(scope=message)
                answered = headers.get(HEADER, name[:MAX_NAME].strip())
                if answered:
                    headers[HEADER] = f"{answered}{_MARK}{self.replica}"
            await send(message)

        await self.app(scope, receive, send_name)
