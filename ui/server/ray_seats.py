"""Middleware for Ray Serve's HTTP proxy that keeps each browser with one replica, as deploy/nginx.conf does.

The page needs this because a message and its answer are two requests to one replica. The proxy selects the replica by
X-Conversation-Id, which browsers do not send. This middleware sets a cookie at the first request of a browser and
passes its value on as X-Conversation-Id. Requests to the API stay as they are.

Ray imports the middleware in the process of its proxy, so both variables must be set where Ray is started:

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
_SEAT = re.compile(r"[0-9a-f]{32}")


def middlewares() -> list[Middleware]:
    """Return the middleware in the form that RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH requires."""
    return [Middleware(Seats)]


class Seats:
    """The middleware.

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
        is_known = _SEAT.fullmatch(sent) is not None
        seat = sent if is_known else secrets.token_hex(16)
        scope = {**scope, "headers": list(scope["headers"])}
        MutableHeaders(scope=scope)[HEADER] = seat

        async def send_cookie(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": list(message.get("headers", []))}
                cookie = f"{COOKIE}={seat}; Path=/; HttpOnly; SameSite=Lax"
                MutableHeaders(scope=message).append("set-cookie", cookie)
            await send(message)

        await self.app(scope, receive, send if is_known else send_cookie)
