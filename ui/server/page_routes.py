"""The part of Gradio's HTTP interface that the page uses; everything else of it is closed.

Gradio is made for applications that exchange files. A mounted Gradio application copies any file of the server that a
client names in an input (`{"path": ..., "meta": {"_type": "gradio.FileData"}}`) into a folder that it serves, stores
uploads on disk, and offers routes for downloads, proxying and editing. This page exchanges text only, so:

- only the routes in `ROUTES` exist for clients, with the query parameters named there;
- a request body that names a file, in whatever input, is refused before Gradio sees it;
- the body that Gradio reads is written anew from the value that was checked, so both cannot read it differently.
"""

from __future__ import annotations

import json
import re
from urllib.parse import parse_qsl, urlencode

from ui.api.schemas import ApiError

OURS = ("/v1/", "/healthz", "/metrics", "/openapi.json")
"""Beginnings of paths that belong to this project's own routes, not to Gradio."""

ROUTES: dict[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "GET": (
        re.compile(
            r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json|/logout"
            r"|/(assets|static)/.+"
            r"|/gradio_api/(info|user|login_check|app_id|startup-events|theme\.css|queue/data|heartbeat/\w+)"
        ),
        ("session_hash", "__theme"),
    ),
    "POST": (re.compile(r"/login|/gradio_api/(queue/join|cancel|reset)"), ("__theme",)),
}
"""For each method the paths of the page and the query parameters that are passed on; HEAD follows GET."""

LOGIN_BYTES = 16 * 1024
"""Largest body of a log-in; a form this small is parsed in memory."""

FILE_KEYS = frozenset({"path", "_type", "orig_name", "is_stream"})
"""Keys of Gradio's description of a file; no value that the page sends has any of them."""


def is_gradio(path: str) -> bool:
    """Whether Gradio answers a path."""
    return not path.startswith(OURS)


def check_route(method: str, path: str) -> None:
    """Refuse what the page does not use.

    Raises:
        ApiError: 404, the route is closed.
    """
    pattern, _ = ROUTES.get("GET" if method == "HEAD" else method, (None, ()))
    if pattern is None or not pattern.fullmatch(path.rstrip("/") or "/") or ".." in path:
        raise ApiError(404, "There is nothing at this address.", code="not_found")


def checked_query(method: str, query: bytes) -> bytes:
    """Return the query string with the parameters that the page uses and no others."""
    _, names = ROUTES.get("GET" if method == "HEAD" else method, (None, ()))
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    return urlencode([(name, value) for name, value in pairs if name in names]).encode()


def checked_body(path: str, content_type: str, body: bytes) -> bytes:
    """Return the body of a POST as Gradio may read it.

    Raises:
        ApiError: 400, 413 or 415, the body is not what the page sends.
    """
    if path.startswith("/login"):
        if len(body) > LOGIN_BYTES:
            raise ApiError(413, f"A log-in may have at most {LOGIN_BYTES} bytes.", code="body_too_large")
        if b"filename" in body:
            raise ApiError(415, "A log-in holds a user name and a password, no file.", code="no_files")
        return body
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send application/json.", code="unsupported_media_type")
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None
    if names_file(value):
        raise ApiError(400, "Inputs of the page hold no files.", code="no_files")
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None


def names_file(value: object) -> bool:
    """Whether a JSON value has, at any depth, an object that Gradio might take for a file."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if not FILE_KEYS.isdisjoint(part):
                return True
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False
