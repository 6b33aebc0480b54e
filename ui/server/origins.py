"""Check of the web site that a request comes from, by its headers, before anything else is read.

A browser sends requests on behalf of every page that is open in it. Three attacks follow from that, and each has its
rule:

- DNS rebinding: a foreign name that resolves to this machine makes a foreign page look like this server's own. The Host
  header must name this server (`Origins.check_host`). Numeric addresses cannot be rebound, so they are always accepted.
- Cross-site requests: a foreign page posts to this server or embeds its answers. Requests that a browser marks as
  cross-site are refused (`Origins.check_source`), except for following a link to the page.
- Cross-origin reading: without CORS headers a browser keeps answers from foreign pages. The server sends none, unless
  the operator names an origin with --allow-origin, and then only for /v1.

Clients that are not browsers send neither Origin nor Sec-Fetch-Site and are not affected by the last two rules.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

from starlette.datastructures import Headers
from starlette.types import Scope

from chatbot.errors import XianliaoError
from ui.api.schemas import ApiError

LOOPBACK_NAMES = frozenset({"localhost", "ip6-localhost"})
EXPOSED_HEADERS = "X-Conversation-Id, X-Ignored, X-Fixed-Reply, Retry-After"
PREFLIGHT_SECONDS = 600
_HOST = re.compile(r"(?P<name>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::\d{1,5})?")

PAGE_POLICY = "; ".join(
    (
        "default-src 'self'",
        "script-src 'self' 'unsafe-inline' 'unsafe-eval'",  # Gradio uses inline scripts and compiled handlers
        "style-src 'self' 'unsafe-inline'",
        "img-src 'self' data: blob:",
        "font-src 'self' data:",
        "connect-src 'self'",
        "worker-src 'self' blob:",
        "object-src 'none'",
        "base-uri 'self'",
        "form-action 'self'",
        "frame-ancestors 'none'",
    )
)
API_POLICY = "default-src 'none'; frame-ancestors 'none'"


@dataclass(frozen=True)
class Origins:
    """The names of this server and the foreign origins that may use its API.

    Attributes:
        hosts: Accepted names of the Host header besides loopback names and numeric addresses, in lower case.
        allowed: Origins (`scheme://host[:port]`) of web applications that may call /v1 from a browser.
    """

    hosts: frozenset[str] = frozenset()
    allowed: frozenset[str] = frozenset()

    def check_host(self, headers: Headers) -> None:
        """Refuse a request that was meant for a server of another name.

        Raises:
            ApiError: 421, the Host header is missing, malformed, sent twice, or names another server.
        """
        values = headers.getlist("host")
        name = host_name(values[0]) if len(values) == 1 else None
        if name is None or not (name in LOOPBACK_NAMES or name in self.hosts or is_address(name)):
            raise ApiError(
                421,
                "The Host header names another server. Start this one with --allow-host NAME to add a name.",
                code="unknown_host",
            )

    def check_source(self, scope: Scope, headers: Headers) -> None:
        """Refuse a request that a foreign web page caused.

        Raises:
            ApiError: 403, the request comes from another origin that is not allowed.
        """
        if self.allowed_origin(scope, headers) is not None:
            return
        site = headers.get("sec-fetch-site")
        origins = headers.getlist("origin")
        if site in (None, "same-origin", "none") and all(self._is_own(origin, headers) for origin in origins):
            return
        if follows_link(scope, headers):
            return
        raise ApiError(
            403,
            "Requests from other web sites are refused. Start the server with --allow-origin ORIGIN for /v1.",
            code="foreign_origin",
        )

    def allowed_origin(self, scope: Scope, headers: Headers) -> str | None:
        """Return the request's origin if --allow-origin names it and the request is for /v1."""
        origins = headers.getlist("origin")
        if len(origins) == 1 and scope["path"].startswith("/v1/") and origins[0].lower() in self.allowed:
            return origins[0]
        return None

    def preflight(self, scope: Scope, headers: Headers) -> dict[str, str] | None:
        """Return the headers that answer a CORS preflight of an allowed origin; None if the request is not one."""
        if scope["method"] != "OPTIONS" or "access-control-request-method" not in headers:
            return None
        if self.allowed_origin(scope, headers) is None:
            return None
        answer = {
            "Access-Control-Allow-Methods": "GET, POST",
            "Access-Control-Allow-Headers": headers.get(
                "access-control-request-headers", "authorization, content-type"
            ),
            "Access-Control-Max-Age": str(PREFLIGHT_SECONDS),
        }
        if headers.get("access-control-request-private-network") == "true":
            answer["Access-Control-Allow-Private-Network"] = "true"
        return answer

    def secured(self, scope: Scope, headers: Headers, sent: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Return the headers of a response with the security headers added.

        CORS headers of inner applications are dropped, and cookies become SameSite=Lax.
        """
        headers_out = []
        for name, value in sent:
            lower = name.lower()
            if (lower.startswith(b"access-control-") and lower not in _PREFLIGHT_ANSWERS) or lower in _SECURITY:
                continue
            headers_out.append((name, lax(value) if lower == b"set-cookie" else value))
        is_page = not scope["path"].startswith(("/v1/", "/metrics", "/healthz"))
        origin = self.allowed_origin(scope, headers)
        security = {
            "Content-Security-Policy": PAGE_POLICY if is_page else API_POLICY,
            "X-Frame-Options": "DENY",
            "X-Content-Type-Options": "nosniff",
            "Referrer-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Cross-Origin-Resource-Policy": "same-origin" if origin is None else "cross-origin",
        }
        if self.allowed and scope["path"].startswith("/v1/"):
            security["Vary"] = "Origin"
        if origin is not None:
            security |= {"Access-Control-Allow-Origin": origin, "Access-Control-Expose-Headers": EXPOSED_HEADERS}
        return headers_out + [(name.lower().encode(), value.encode("latin-1")) for name, value in security.items()]

    def _is_own(self, origin: str, headers: Headers) -> bool:
        """Whether an Origin header names the same server as the Host header; the scheme may be the https of a proxy."""
        try:
            parts = urlsplit(origin)
        except ValueError:  # a bracket without its counterpart
            return False
        host = headers.get("host", "").lower()
        return parts.scheme in ("http", "https") and parts.netloc.lower() in (host, _without_default_port(host))


_PREFLIGHT_ANSWERS = {
    b"access-control-allow-methods",
    b"access-control-allow-headers",
    b"access-control-max-age",
    b"access-control-allow-private-network",
}
_SECURITY = {
    b"content-security-policy",
    b"x-frame-options",
    b"x-content-type-options",
    b"referrer-policy",
    b"cross-origin-opener-policy",
    b"cross-origin-resource-policy",
}


def follows_link(scope: Scope, headers: Headers) -> bool:
    """Whether the request only opens the page itself in a tab, as following a link from another site does."""
    return (
        scope["method"] in ("GET", "HEAD")
        and scope["path"] == "/"
        and headers.get("sec-fetch-mode") == "navigate"
        and headers.get("sec-fetch-dest") == "document"
        and "origin" not in headers
    )


def host_name(value: str) -> str | None:
    """Return the lower-case name of a Host header without its port, or None if it is malformed."""
    match = _HOST.fullmatch(value.strip())
    return match["name"].lower().rstrip(".") if match else None


def is_address(name: str) -> bool:
    """Whether a host name is a numeric IPv4 or (bracketed) IPv6 address."""
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return False
    return True


def lax(cookie: bytes) -> bytes:
    """Return a Set-Cookie value with SameSite=Lax; another SameSite is replaced."""
    parts = [part.strip() for part in cookie.split(b";")]
    return b"; ".join([*(part for part in parts if not part.lower().startswith(b"samesite")), b"SameSite=Lax"])


def read_origins(values: Sequence[str]) -> frozenset[str]:
    """Return the origins of --allow-origin in the form in which browsers send them.

    Raises:
        XianliaoError: A value is not `http(s)://host[:port]`.
    """
    for value in values:
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.netloc or value.rstrip("/").lower() != _bare(parts):
            raise XianliaoError(
                f"--allow-origin: {value!r} is not an origin. Give scheme, host and port, as in https://app.example.com."
            )
    return frozenset(value.rstrip("/").lower() for value in values)


def read_hosts(values: Sequence[str], host: str) -> frozenset[str]:
    """Return the names of --allow-host and --host.

    Raises:
        XianliaoError: A value is not a host name.
    """
    for value in values:
        if host_name(value) is None or ":" in value:
            raise XianliaoError(f"--allow-host: {value!r} is not a host name. Give it without scheme and port.")
    return frozenset(value.lower().rstrip(".") for value in (*values, host) if ":" not in value)


def _bare(parts: SplitResult) -> str:
    return f"{parts.scheme}://{parts.netloc}".lower()


def _without_default_port(netloc: str) -> str:
    return re.sub(r":(80|443)$", "", netloc)
