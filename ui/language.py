"""The language of the page: the one that the user chose, or that of the browser."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import gradio as gr

LANGUAGE_COOKIE = "xianliao-language"
"""Cookie with the language that the user chose on the page."""


def language_of(accept_language: str | None, chosen: str | None = None) -> str:
    """Return `zh` or `en`: the language that the user chose, or else that of the browser's Accept-Language header."""
    if chosen in ("zh", "en"):
        return chosen
    first = (accept_language or "").split(",")[0].strip().lower()
    return "zh" if first.startswith("zh") else "en"


def language_of_request(request: gr.Request | None) -> str:
    """Return the language of the page, which a cookie or the browser's settings name."""
    if request is None:
        return language_of(None)
    return language_of(request.headers.get("accept-language"), request.cookies.get(LANGUAGE_COOKIE))
