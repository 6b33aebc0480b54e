"""Results of the training view that the server has loaded to chat with."""

from __future__ import annotations

import gc
from collections.abc import Callable, MutableMapping
from pathlib import Path

from chatbot.chat.bot import Chatbot
from chatbot.chat.worker import Worker
from ui.studio.options import StudioOptions

MAX_RESULTS = 3
"""Number of results that stay loaded; the oldest one is dropped."""


class Results:
    """Adds the checkpoints of runs to the models of a server.

    Args:
        workers: Workers of the server by the name of their checkpoint; the results are added.
        make_worker: Function that returns a worker for a bot.
        options: Options of the view.
    """

    def __init__(
        self,
        workers: MutableMapping[str, Worker],
        make_worker: Callable[[Chatbot], Worker],
        options: StudioOptions,
    ):
        self._workers, self._make_worker, self._options = workers, make_worker, options
        self._first = next(iter(workers.values())).bot
        self._given = frozenset(workers)
        self._loaded: list[str] = []

    def add(self, folder: Path) -> str:
        """Load the checkpoint of a run, in place of an earlier state of the same run, and return its name.

        Raises:
            XianliaoError: The checkpoint cannot be loaded.
        """
        bot = Chatbot.from_pretrained(folder, self._options.device, self._options.dtype, self._first.safety)
        given = self._first.settings  # --script and --thinking are for all models of a server
        bot.settings = bot.settings.with_changes(script=given.script, thinking=given.thinking)
        bot.name = folder.name if folder.name not in self._given else f"{folder.parent.name}/{folder.name}"
        if bot.name in self._loaded:
            self._drop(bot.name)
        elif len(self._loaded) == MAX_RESULTS:
            self._drop(self._loaded[0])
        self._workers[bot.name] = self._make_worker(bot)
        self._loaded.append(bot.name)
        return bot.name

    def _drop(self, name: str) -> None:
        self._loaded.remove(name)
        self._workers.pop(name).close(1)
        gc.collect()
