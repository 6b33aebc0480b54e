"""Progress of xianliao-name: a bar for each part that measures, and the expected time of all parts."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from tqdm import tqdm

from chatbot.chat.bot import Chatbot
from chatbot.model.scoring import score_turns
from training.naming.guard import BATCH_SIZE, reply_all
from training.naming.objective import keeping_objective
from training.reporting.estimate import estimate, minutes
from training.settings import TrainSettings

TIMED_DIALOGUES = 32
"""Dialogues that are scored to estimate the time of the measurements."""


@contextmanager
def shown(text: str, total: int) -> Iterator[Callable[[int], object]]:
    """Show a progress bar with a text on stderr; yield the function that advances it by a number of items."""
    with tqdm(total=total, desc=text, file=sys.stderr, mininterval=1) as bar:
        yield bar.update


def expected_time(
    settings: TrainSettings, bot: Chatbot, dialogues: Sequence[Sequence[str]], scored: int, replies: int
) -> str:
    """Return a sentence with the expected time of the command.

    Args:
        settings: Settings of the training; some of its steps are timed, with its own objective.
        bot: Bot before the training.
        dialogues: Dialogues of which some are scored and answered, to be timed.
        scored: Number of dialogues that will be scored.
        replies: Number of replies that will be asked for.
    """
    some = [[bot.reader.ids(turn) for turn in turns] for turns in dialogues[:TIMED_DIALOGUES]]
    asked = [(turns[0], 0) for turns in dialogues[:BATCH_SIZE]]
    reply_all(bot, asked[:1])  # the first reply may compile the network
    started = time.perf_counter()
    score_turns(bot.model, bot.layout, some)
    per_dialogue = (time.perf_counter() - started) / len(some)
    started = time.perf_counter()
    reply_all(bot, asked)
    per_reply = (time.perf_counter() - started) / len(asked)
    measuring = scored * per_dialogue + replies * per_reply
    training = estimate(settings, keeping_objective)[1]
    return _summary_of_time(training, measuring)


def _summary_of_time(training: float, measuring: float) -> str:
    """Return the sentence of `expected_time` for the seconds of the training and of all measurements."""
    parts = f"{minutes(training)} of training, {minutes(measuring)} of measuring"
    return f"expected time: {minutes(training + measuring)} ({parts}); other work on this machine makes it longer"
