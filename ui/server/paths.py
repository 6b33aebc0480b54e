"""Which part of the server answers a path. Proxies import this too, so it needs no other module."""

from __future__ import annotations

KEY_ROUTES = ("/metrics", "/openapi.json")
"""Routes outside /v1 that need credentials if the server has any."""


def is_page(path: str) -> bool:
    """Whether Gradio answers a path."""
    return not path.startswith("/v1/") and path.rstrip("/") not in ("/healthz", *KEY_ROUTES)


def needs_key(path: str) -> bool:
    """Whether a path needs credentials of the API."""
    return path.startswith("/v1/") or path.rstrip("/") in KEY_ROUTES
