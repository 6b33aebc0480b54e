"""Events of the training view: its orders to the project, and the chat with the result."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import gradio as gr

from chatbot.chat.worker import Worker
from ui.language import language_of_request
from ui.page.actions import guarded, notices
from ui.server.work import LARGE_CHARACTERS, WorkPool
from ui.studio.studio import Studio

FOLDER_WORK = LARGE_CHARACTERS + 1
"""Size of the work of an order: it reads presets, reports and logs, so it waits among the large texts."""


class StudioView:
    """The training view.

    Args:
        studio: The project.
        workers: Workers by the name of their checkpoint.
        add_result: Function that loads the checkpoint of a run, serves it, and returns its name.
        pool: Threads in which texts are read.
    """

    def __init__(
        self, studio: Studio, workers: Mapping[str, Worker], add_result: Callable[[Path], str], pool: WorkPool
    ):
        self.studio, self.workers, self.add_result, self.pool = studio, workers, add_result, pool
        self._lock = threading.Lock()

    @partial(guarded, least_size=FOLDER_WORK)
    def order(self, value: Any, request: gr.Request) -> dict[str, Any]:
        """Follow an order of the view and return what it shows."""
        self.studio.order(value)
        return self.studio.state(language_of_request(request))

    def open_result(self, request: gr.Request) -> tuple[Any, ...]:
        """Serve the checkpoint of the run, and select it in the settings."""
        with notices(language_of_request(request)), self._lock:
            name = self.add_result(self.studio.result_folder())
        return gr.Dropdown(list(self.workers), value=name, visible=True), list(self.workers)
