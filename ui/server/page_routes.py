"""The part of Gradio's HTTP interface that the page uses; the rest of it is closed.

Gradio is made for applications that exchange files. A mounted Gradio application copies any file of the server that a
client names in an input (`{"path": ..., "meta": {"_type": "gradio.FileData"}}`) into a folder that it serves, stores
uploads on disk, and offers routes for downloads, proxying and editing. This page exchanges text only, so:

- clients can use only the routes in `ROUTES`, with the query parameters named there;
- a request body that names a file in any input is refused before Gradio sees it;
- a call must name a function of the page and have as many inputs as that function;
- the body that Gradio reads is written anew from the value that was checked, so both cannot understand it differently.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import parse_qsl, urlencode

import orjson
from starlette.datastructures import Headers

from ui.api.schemas import ApiError
from ui.json_bounds import MAX_MARKS, has_too_many_values

ROUTES: dict[str, tuple[re.Pattern[str], tuple[str, ...]]] = {
    "GET": (
        re.compile(
            r"/|/config|/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json"
            r"|/(assets|static)(/[A-Za-z0-9_.@+-]{1,255})+"
            r"|/gradio_api/(info|user|login_check|app_id|startup-events|theme\.css|queue/data)"
        ),
        ("session_hash", "__theme"),
    ),
    "POST": (re.compile(r"/login|/logout|/gradio_api/(queue/join|cancel|reset)"), ("__theme",)),
}
"""For each method the paths of the page and the query parameters that are passed on; HEAD follows GET."""

FILES = re.compile(r"/(assets|static)/.+|(/gradio_api)?/theme\.css|/favicon\.ico|/robots\.txt|/manifest\.json")
"""Paths of the files that a browser loads with the page."""

PUBLIC = re.compile(r"/|/login|/logout|/gradio_api/(user|login_check)")
"""Paths that need no log-in, because the log-in itself uses them; the files of `FILES` need none either."""

LOGIN_BYTES = 16 * 1024
"""Largest body of a log-in; a form this small is parsed in memory."""

BODY_KEYS = ("data", "event_data", "fn_index", "trigger_id", "session_hash", "event_id")
"""Keys of a JSON body that are passed on to Gradio."""

_SESSION = re.compile(r"[A-Za-z0-9_-]{1,64}")

MOST_DIGITS = 18

MAX_PATH = 1_000
"""Characters of a path; longer ones are closed, because no file system has such names."""

FILE_KEYS = frozenset({"path", "_type", "orig_name", "is_stream"})
"""Keys of Gradio's description of a file; no value that the page sends has any of these keys."""


@dataclass(frozen=True)
class PageRules:
    """Facts about the mounted page.

    Attributes:
        functions: Number of inputs of each function, by its index.
        needs_login: Whether the page is for logged-in users only.
        user_of: Function that returns the logged-in user of a request, or None.
        has_session: Whether a session has events and this user opened it; only then the user can read its results.
        takes: Whether the queue has room for an input of this many bytes.
    """

    functions: Mapping[int, int] = field(default_factory=dict)
    needs_login: bool = False
    user_of: Callable[[Headers], str | None] = lambda headers: None
    has_session: Callable[[str, str | None], bool] = lambda name, user: True
    takes: Callable[[int], bool] = lambda size: True


def is_file(path: str) -> bool:
    """Whether a path is a file that a browser loads with the page."""
    return FILES.fullmatch(path) is not None


def is_stream(path: str) -> bool:
    """Whether a path is the stream of a session's results."""
    return path.rstrip("/").endswith("/queue/data")


def is_public(path: str) -> bool:
    """Whether a path of the page is open before the log-in."""
    return is_file(path) or PUBLIC.fullmatch(path.rstrip("/") or "/") is not None


def check_route(method: str, path: str) -> None:
    """Refuse a route that the page does not use.

    Raises:
        ApiError: 404, the route is closed.
    """
    pattern, _ = ROUTES.get("GET" if method == "HEAD" else method, (None, ()))
    if len(path) > MAX_PATH:
        raise closed()
    if pattern is None or not pattern.fullmatch(path.rstrip("/") or "/") or ".." in path:
        raise closed()


def closed() -> ApiError:
    """Return the error for a path without a route, or without a file."""
    message = "There is nothing at this address. The API is below /v1, for example /v1/chat/completions."
    return ApiError(404, message, code="not_found")


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _number(digits: str) -> int | float:
    """Return a whole number; as a float if it has too many digits for a result, whose numbers have at most 64 bits."""
    return int(digits) if len(digits) <= MOST_DIGITS else _finite(digits)


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits[:20]} is larger than every float")
    return number


def check_session(session: object) -> None:
    """Refuse a session id that Gradio's page would not make. Gradio keeps these ids, so their length must be bounded.

    Raises:
        ApiError: 400, the id is not 1 to 64 letters, digits, `-` and `_`.
    """
    if session is not None and not (isinstance(session, str) and _SESSION.fullmatch(session)):
        raise ApiError(400, "session_hash must be 1 to 64 letters and digits. Reload the page.", code="invalid_session")


def checked_query(method: str, query: bytes) -> bytes:
    """Return the query string with only the parameters that the page uses."""
    _, names = ROUTES.get("GET" if method == "HEAD" else method, (None, ()))
    pairs = parse_qsl(query.decode("latin-1"), keep_blank_values=True)
    for name, value in pairs:
        if name == "session_hash":
            check_session(value)
    return urlencode([(name, value) for name, value in pairs if name in names]).encode()


def check_results(path: str, query: bytes, user: str | None, has_session: Callable[[str, str | None], bool]) -> None:
    """Refuse to read the results of a session that the user has not opened.

    Gradio would hand them to every user who knows the name of the session, and would fail in the middle of the answer if
    the session does not exist.

    Raises:
        ApiError: 404, the session does not exist, belongs to another user, or was dropped because no browser read it.
    """
    if is_stream(path):
        name = dict(parse_qsl(query.decode("latin-1"))).get("session_hash", "")
        if not has_session(name, user):
            raise ApiError(404, "This session has no results. Reload the page.", code="unknown_session")


def checked_body(path: str, content_type: str, body: bytes, functions: Mapping[int, int] | None = None) -> bytes:
    """Return the checked body of a POST, in the form that is passed on to Gradio.

    Args:
        path: Path of the request.
        content_type: Value of its Content-Type header.
        body: Body as it arrived.
        functions: Number of inputs of each function of the page; None skips that check.

    Raises:
        ApiError: 400, 413 or 415, the page does not send this body.
    """
    if path.startswith("/login"):
        if b"filename" in body.lower():
            raise ApiError(415, "A log-in has a user name and a password, not a file.", code="no_files")
        return body
    if path.startswith("/logout"):
        return b""
    if content_type.partition(";")[0].strip().lower() != "application/json":
        raise ApiError(415, "Send application/json.", code="unsupported_media_type")
    if has_too_many_values(body):
        raise ApiError(413, f"A request of the page may have at most {MAX_MARKS} values.", code="body_too_large")
    try:
        # as text: json would guess the encoding of bytes, and the values were counted in UTF-8
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, parse_int=_number, parse_float=_finite)
    except (ValueError, RecursionError):
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None
    check_files(value)
    value = {name: part for name, part in value.items() if name in BODY_KEYS} if isinstance(value, dict) else value
    check_session(value.get("session_hash") if isinstance(value, dict) else None)
    if functions is not None and path.rstrip("/").endswith("/queue/join"):
        check_call(value, functions)
    try:
        return orjson.dumps(value)
    except TypeError:  # a lone surrogate, or more levels than orjson writes
        pass
    try:
        return json.dumps(value, ensure_ascii=False).encode("utf-8", "replace")
    except RecursionError:
        raise ApiError(400, "The body is not JSON.", code="invalid_json") from None


def check_call(value: object, functions: Mapping[int, int]) -> None:
    """Refuse a call that the page does not make; Gradio would answer it with a traceback that quotes the inputs.

    Raises:
        ApiError: 400, the function does not exist or the number of inputs is wrong.
    """
    index = value.get("fn_index") if isinstance(value, dict) else None
    data = value.get("data") if isinstance(value, dict) else None
    if type(index) is not int or index not in functions:
        raise ApiError(400, "fn_index is not a function of this page. Reload the page.", code="unknown_function")
    if not isinstance(data, list) or len(data) != functions[index]:
        raise ApiError(
            400, f"This function has {functions[index]} inputs. Reload the page.", code="wrong_number_of_inputs"
        )


def check_files(value: object) -> None:
    """Refuse a JSON value that names a file at any depth.

    Raises:
        ApiError: 400.
    """
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            if names_file(part):
                raise ApiError(400, "Inputs of the page hold no files.", code="no_files")
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part


def names_file(value: dict) -> bool:
    """Whether Gradio might take an object for the description of a file."""
    return not FILE_KEYS.isdisjoint(value)
