"""Progress of xianliao-name: a bar for each part that measures, and the expected time of all parts."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

from tqdm import tqdm

from chatbot.chat.bot import Chatbot
from chatbot.model.scoring import score_turns
from training.naming.guard import BATCH_SIZE, reply_all
from training.naming.objective import keeping_objective
from training.reporting.estimate import estimate, minutes
from training.reporting.throughput import Duration, timed
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
    per_dialogue = timed(partial(score_turns, bot.model, bot.layout, some)) * (1 / len(some))
    per_reply = timed(partial(reply_all, bot, asked)) * (1 / len(asked))
    measuring = per_dialogue * scored + per_reply * replies
    return _summary_of_time(estimate(settings, keeping_objective).duration, measuring)


def _summary_of_time(training: Duration, measuring: Duration) -> str:
    """Return the sentences of `expected_time` for the durations of the training and of all measurements."""
    total = training + measuring
    parts = f"{minutes(training.wall)} of training, {minutes(measuring.wall)} of measuring"
    expected = f"expected time: {minutes(total.wall)} ({parts})"
    if total.is_slowed_down:
        return f"{expected}; the machine is busy: about {minutes(total.processor)} on a free one"
    return f"{expected}; other work on this machine makes it longer"
