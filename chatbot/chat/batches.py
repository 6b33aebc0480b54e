"""Rows that step together: all whose conversations can share one lane, or those of one conversation in a lane of its own."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from chatbot.chat.bot import Chatbot, Reply, Request, candidate_seeds
from chatbot.decoding.loop import repeated
from chatbot.decoding.native_slots import Slots
from chatbot.decoding.sampler import Live
from chatbot.text.layouts import DialogptLayout


@dataclass(eq=False)
class Job:
    """A reply that somebody waits for.

    Attributes:
        request: What is asked for.
        deliver: Called in the worker's thread with the reply so far after every step, then with None at the end, or with
            the error that ended it.
        cancelled: Set by whoever no longer waits.
        alone: Keeps it apart from others, after it may have been the cause of a failure.
        delivered: Steps whose reply was delivered.
        rows: Its candidates, from the first token on.
        walk: Something else to go through in its place, a step a tick, and to deliver as it is, a None not at all.
    """

    request: Request
    deliver: Callable[[Reply | BaseException | None], None]
    cancelled: bool = False
    alone: bool = False
    delivered: int = 0
    rows: list[Live] = field(default_factory=list)
    walk: Callable[[], Iterator] | None = None

    def cancel(self) -> None:
        """Frees its place; nothing more is delivered after the step under way."""
        self.cancelled = True

    def begin(self) -> list[Live]:
        """Its rows, from the beginning."""
        seeds = candidate_seeds(self.request.seed, self.request.settings.candidates)
        self.rows = [Live(self.request.settings, random.Random(seed), self.request.answered.own) for seed in seeds]
        return self.rows


class OwnLane:
    """The rows of one job. Every tick of a lane is `read`, then a choice of `tokens`, then `keep`.

    Args:
        bot: Whose replies they are.
        job: Whose prompt is read at once.

    Attributes:
        logits: `[B, V]`, of the next token of each row.
        rows, owners: The B replies under way, and whose they are.
        tokens: What was chosen for each, to be read next.
    """

    def __init__(self, bot: Chatbot, job: Job):
        self._steps, logits = bot.steps_after(job.request.prompt)
        self.rows = list(job.begin())
        self.owners = [job] * len(self.rows)
        self.tokens: list[int] = []
        self.logits = repeated(self._steps, logits, len(self.rows))

    def __len__(self) -> int:
        """Replies in it."""
        return len(self.rows)

    @property
    def jobs(self) -> list[Job]:
        return list(dict.fromkeys(self.owners))

    def read(self) -> None:
        """Makes `logits` those of what follows `tokens`."""
        if self.tokens:
            tokens = torch.tensor(self.tokens, device=self.logits.device)
            self.logits = self._steps(tokens, torch.full_like(tokens, self.owners[0].request.prompt.reply_speaker))

    def keep(self, places: Sequence[int]) -> None:
        """Keeps these rows and drops the others."""
        if 0 < len(places) < len(self.rows):
            self._steps.select(torch.tensor(places, device=self.logits.device))
        self.rows, self.owners, self.tokens = _chosen(places, self.rows, self.owners, self.tokens)


@dataclass
class Entering:
    """A job whose prompt is being read.

    Attributes:
        place: Of its state.
        done: Pieces of its prompt that have been read.
        logits: `[1, V]` of what follows them, None before the first.
    """

    job: Job
    place: int
    done: int
    logits: torch.Tensor | None

    @property
    def unread(self) -> tuple[tuple[tuple[int, ...], int], ...]:
        return self.job.request.prompt.pieces[self.done :]


@dataclass
class Closing:
    """A reply that has ended, whose end of turn is still to be read: then its state is the one the next turn goes on from.

    Attributes:
        place: Of its state.
        pieces: Of the prompt and the reply.
    """

    place: int
    pieces: tuple[tuple[tuple[int, ...], int], ...]


class SharedLane:
    """The rows of all jobs whose states are in `Slots`; like `OwnLane`, and others enter at any tick.

    A tick reads one token for each row under way, a piece of the prompt for each job that enters, and the end of turn of
    each reply that has ended, all together. A state is remembered where the next message of the person goes on from it.
    """

    def __init__(self, bot: Chatbot):
        self._closes = isinstance(bot.layout, DialogptLayout)  # whose replies end with the token that ends the turn
        self._snapshots, self._slots = bot.snapshots, Slots(bot.model.native)
        self.logits = torch.empty(0, bot.model.config.vocab_size)
        self.rows: list[Live] = []
        self.owners: list[Job] = []
        self.tokens: list[int] = []
        self._places: list[int] = []
        self._entering: list[Entering] = []
        self._closing: list[Closing] = []

    def __len__(self) -> int:
        """Replies in it, those that enter and those that have just ended included."""
        entering = sum(each.job.request.settings.candidates for each in self._entering)
        return len(self.rows) + entering + len(self._closing)

    @property
    def jobs(self) -> list[Job]:
        return list(dict.fromkeys([*self.owners, *(each.job for each in self._entering)]))

    def enter(self, job: Job) -> None:
        """Gives a job a place, with what is remembered of its prompt."""
        done, steps, logits = self._snapshots.longest(job.request.prompt.pieces)
        self._entering.append(Entering(job, self._slots.enter(steps), done, logits))

    def read(self) -> None:
        """Makes `logits` those of what follows `tokens`, and adds rows for the jobs whose prompts have been read."""
        reading, closing = [each for each in self._entering if each.unread], self._closing
        tokens = [(token,) for token in self.tokens]
        speakers = [job.request.prompt.reply_speaker for job in self.owners]
        tokens += [each.unread[0][0] for each in reading] + [each.pieces[-1][0][-1:] for each in closing]
        speakers += [each.unread[0][1] for each in reading] + [each.pieces[-1][1] for each in closing]
        places = [*self._places, *(each.place for each in [*reading, *closing])]
        logits = self._slots.read_at(places, tokens, speakers) if tokens else self.logits
        row = len(self.rows)
        for each in reading:
            each.done, each.logits = each.done + 1, logits[row : row + 1].clone()
            row += 1
            prompt = each.job.request.prompt
            if prompt.pieces[each.done - 1][1] == prompt.reply_speaker or not self._closes:
                self._snapshots.keep(prompt.pieces[: each.done], self._slots.copy_of(each.place), each.logits)
        for each in closing:
            self._snapshots.keep(each.pieces, self._slots.copy_of(each.place), logits[row : row + 1].clone())
            self._slots.leave(each.place)
            row += 1
        self._closing = []
        ready = [each for each in self._entering if not each.unread]
        self._entering = [each for each in self._entering if each.unread]
        parts = [logits[: len(self.rows)]]
        for each in ready:
            parts += [each.logits] * self._begin(each)
        self.logits = torch.cat(parts)

    def _begin(self, entered: Entering) -> int:
        """Adds the rows of a job, the first where its prompt was read; how many."""
        rows = entered.job.begin()
        self.rows += rows
        self.owners += [entered.job] * len(rows)
        self._places.append(entered.place)
        if len(rows) > 1:
            state = self._slots.copy_of(entered.place)
            self._places += [self._slots.enter(state) for _ in rows[1:]]
        return len(rows)

    def keep(self, places: Sequence[int]) -> None:
        """Keeps these rows and drops the others, and who enters and was cancelled."""
        kept = set(places)
        for row, place in enumerate(self._places):
            if row not in kept:
                self._end(row, place)
        lists = (self.rows, self.owners, self.tokens, self._places)
        self.rows, self.owners, self.tokens, self._places = _chosen(places, *lists)
        for each in self._entering:
            if each.job.cancelled:
                self._slots.leave(each.place)
        self._entering = [each for each in self._entering if not each.job.cancelled]

    def _end(self, row: int, place: int) -> None:
        """Lets a row go; the state of a reply that is whole is for the next turn."""
        job, draft = self.owners[row], self.rows[row].draft
        if not self._closes or job.cancelled or draft.stop_reason is None or len(job.rows) > 1:
            self._slots.leave(place)
            return
        prompt = job.request.prompt
        reply = ((*draft.token_ids, self.tokens[row]), prompt.reply_speaker)
        self._closing.append(Closing(place, (*prompt.pieces, reply)))


def _chosen(places: Sequence[int], *lists: list) -> list[list]:
    return [[values[place] for place in places] for values in lists]
