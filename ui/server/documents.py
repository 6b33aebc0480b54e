"""Middleware that caches the document of the page. Gradio would render it for every request: about 270 KB in 8 ms.

Only the document for requests without a log-in is cached. It is rendered from a request without any of the client's
headers, so it holds no data of a user, and no client can choose a part of it.
"""

from __future__ import annotations

import asyncio

from starlette.datastructures import Headers
from starlette.responses import Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

PATHS = ("/", "/config", "/config/")
_HOST = "page.invalid"
"""Placeholder for the name of the server in a cached document; each answer has the name that its request used."""


class Documents:
    """The middleware. `Gate` in front of it writes the user into the state of a request, and has checked the Host header.

    Args:
        app: Application with the page.
    """

    def __init__(self, app: ASGIApp):
        self.app, self._lock = app, asyncio.Lock()
        self._bodies: dict[str, tuple[str, bytes]] = {}  # path -> (media type, document)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request for a document from memory; pass any other request on."""
        if scope["type"] != "http" or scope["method"] not in ("GET", "HEAD") or scope["path"] not in PATHS:
            await self.app(scope, receive, send)
            return
        if scope.get("state", {}).get("user", "?") is not None:
            await self.app(scope, receive, send)
            return
        async with self._lock:  # simultaneous first requests render the document once
            if scope["path"] not in self._bodies and not await self._render(scope):
                await self.app(scope, receive, send)
                return
        media_type, body = self._bodies[scope["path"]]
        root = f"{_scheme(scope)}://{Headers(scope=scope)['host']}"
        answer = Response(body.replace(f"http://{_HOST}".encode(), root.encode("latin-1")), media_type=media_type)
        await answer(scope, receive, send)

    async def _render(self, scope: Scope) -> bool:
        """Render and cache the document of a path. Return False if the application refuses the request."""
        sent: list[Message] = []

        async def receive() -> Message:
            return {"type": "http.request", "body": b"", "more_body": False}

        async def collect(message: Message) -> None:
            sent.append(message)

        bare = {"method": "GET", "scheme": "http", "query_string": b"", "headers": [(b"host", _HOST.encode())]}
        no_extensions: Scope = {"extensions": {}}  # with them, messages of other kinds may be sent
        await self.app({**scope, **bare, **no_extensions, "state": dict(scope["state"])}, receive, collect)
        if sent[0]["status"] != 200:
            return False
        media_type = Headers(raw=sent[0]["headers"]).get("content-type", "text/html")
        self._bodies[scope["path"]] = (media_type, b"".join(message.get("body", b"") for message in sent))
        return True


def _scheme(scope: Scope) -> str:
    """Return the scheme that the browser uses, which a proxy in front names."""
    forwarded = Headers(scope=scope).get("x-forwarded-proto", "").partition(",")[0].strip()
    return "https" if "https" in (forwarded, scope["scheme"]) else "http"
