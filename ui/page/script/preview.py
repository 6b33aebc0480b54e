"""Replace the description of the page for link previews: Gradio's names Gradio and an image on another host."""

from __future__ import annotations

import html
import re
from collections.abc import Callable

import gradio.routes
from jinja2 import BaseLoader, Environment

from ui.page.text import TITLE

PREVIEW = re.compile(r"""<meta\s+(?:property="og:|name="twitter:)[^>]*>""")
"""Elements that other programs show when somebody shares the address: Open Graph and Twitter cards."""


OWN = f'<meta property="og:title" content="{html.escape(TITLE)}"><meta property="og:type" content="website">'
"""The page's own link preview. Its title has both languages, as that of the tab."""


class OwnPreview(BaseLoader):
    """A loader of templates that replaces the link preview in what another loader reads."""

    def __init__(self, loader: BaseLoader):
        self.loader = loader

    def get_source(self, environment: Environment, template: str) -> tuple[str, str | None, Callable[[], bool] | None]:
        """Return the source of a template, its file, and a function that says whether it is up to date."""
        source, file, is_current = self.loader.get_source(environment, template)
        return PREVIEW.sub("", source).replace("</head>", f"{OWN}</head>", 1), file, is_current


def replace_preview() -> None:
    """Replace Gradio's link preview by the page's own, in this process."""
    environment = gradio.routes.templates.env
    if environment.loader is not None and not isinstance(environment.loader, OwnPreview):
        environment.loader = OwnPreview(environment.loader)
        if environment.cache is not None:
            environment.cache.clear()
