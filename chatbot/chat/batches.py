"""Batches of the worker: the rows of many conversations in one batch, or those of one conversation alone."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch

from chatbot.chat.bot import Chatbot, Request, candidate_seeds
from chatbot.chat.snapshots import Pieces
from chatbot.decoding.batch import native_network
from chatbot.decoding.loop import repeat_rows
from chatbot.decoding.native_batch import NativeBatch
from chatbot.decoding.native_slots import Slots
from chatbot.decoding.sampler import LiveReply
from chatbot.text.layouts import DialogptLayout

T = TypeVar("T")


@dataclass(eq=False)
class Job:
    """A reply in progress.

    Attributes:
        request: The request.
        deliver: Called in the worker's thread with the reply so far after every step, then with None at the end, or
            with the exception that ended it.
        cancelled: Whether the caller has cancelled it.
        alone: Whether it is decoded in a batch of its conversation alone, because it may have caused a failure.
        delivered: Number of steps whose reply was delivered.
        rows: Its candidates, from the first token on.
        generator: Optional generator to run instead of decoding: it is advanced one item per tick, and items that are
            not None are delivered unchanged.
    """

    request: Request
    deliver: Callable[[Any], None]  # Reply, an item of the generator, BaseException or None
    cancelled: bool = False
    alone: bool = False
    delivered: int = 0
    rows: list[LiveReply] = field(default_factory=list)
    generator: Callable[[], Iterator[Any]] | None = None

    def cancel(self) -> None:
        """Stop the reply; at most the step in progress is still delivered."""
        self.cancelled = True

    def begin(self) -> list[LiveReply]:
        """Create the rows of the job, one per candidate reply, and return them."""
        settings, earlier = self.request.settings, self.request.answered.earlier_replies
        seeds = candidate_seeds(self.request.seed, settings.candidates)
        self.rows = [LiveReply(settings, random.Random(seed), earlier) for seed in seeds]
        return self.rows


class ExclusiveBatch:
    """Rows of one job, in any model. In every tick the worker calls `read`, sets `tokens`, and calls `keep`.

    Args:
        bot: Bot whose model decodes.
        job: The job; its whole prompt is read at once.

    Attributes:
        logits: Logits `[B, V]` of the next token of each row.
        rows, owners: The B replies in progress and their jobs.
        tokens: Chosen token of each row, to be read next.
    """

    def __init__(self, bot: Chatbot, job: Job):
        self._batch, logits = bot.read_prompt(job.request.prompt)
        self.rows = list(job.begin())
        self.owners = [job] * len(self.rows)
        self.tokens: list[int] = []
        self.logits = repeat_rows(self._batch, logits, len(self.rows))

    def __len__(self) -> int:
        """Number of replies in the batch."""
        return len(self.rows)

    @property
    def jobs(self) -> list[Job]:
        """Jobs in the batch."""
        return list(dict.fromkeys(self.owners))

    def read(self) -> None:
        """Read `tokens` and update `logits`."""
        if self.tokens:
            tokens = torch.tensor(self.tokens, device=self.logits.device)
            self.logits = self._batch(tokens, torch.full_like(tokens, self.owners[0].request.prompt.reply_speaker))

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these rows and remove the others."""
        if 0 < len(indices) < len(self.rows):
            self._batch.select(torch.tensor(indices, device=self.logits.device))
        self.rows, self.owners = _selected(self.rows, indices), _selected(self.owners, indices)
        self.tokens = _selected(self.tokens, indices)


@dataclass
class Entering:
    """A job whose prompt is being read.

    Attributes:
        slot: Slot of its state.
        done: Number of prompt pieces that have been read.
        logits: Logits `[1, V]` after these pieces; None before the first piece.
    """

    job: Job
    slot: int
    done: int
    logits: torch.Tensor | None

    @property
    def unread(self) -> Pieces:
        """Pieces that have not been read."""
        return self.job.request.prompt.pieces[self.done :]


@dataclass
class Closing:
    """A finished reply whose end of turn has not been read yet; after that its state is cached for the next turn.

    Attributes:
        slot: Slot of its state.
        pieces: Pieces of the prompt and the reply.
    """

    slot: int
    pieces: Pieces


class SharedBatch:
    """Rows of many jobs whose states are in `Slots`; like `ExclusiveBatch`, and jobs can enter at any tick.

    Each tick is one batched forward pass over the last token of every running reply, one piece of the prompt of every new
    job, and the end of turn of every finished reply. A state is cached where the next message of the person continues
    from it.

    Args:
        bot: Bot whose compiled model decodes.
    """

    def __init__(self, bot: Chatbot):
        network = native_network(bot.model)
        if network is None:
            raise ValueError("A shared batch needs the compiled library.")
        self._ends_with_turn = isinstance(bot.layout, DialogptLayout)  # the last token of a reply ends the turn
        self._snapshots, self._slots = bot.snapshots, Slots(network)
        self.logits = torch.empty(0, bot.model.config.vocab_size)
        self.rows: list[LiveReply] = []
        self.owners: list[Job] = []
        self.tokens: list[int] = []
        self._row_slots: list[int] = []
        self._entering: list[Entering] = []
        self._closing: list[Closing] = []

    def __len__(self) -> int:
        """Number of replies in the batch. Those of entering jobs, and those that have just ended, count."""
        entering = sum(entry.job.request.settings.candidates for entry in self._entering)
        return len(self.rows) + entering + len(self._closing)

    @property
    def jobs(self) -> list[Job]:
        """Jobs in the batch."""
        return list(dict.fromkeys([*self.owners, *(entry.job for entry in self._entering)]))

    def enter(self, job: Job) -> None:
        """Give a job a slot with the longest cached prefix of its prompt."""
        done, batch, logits = self._snapshots.longest(job.request.prompt.pieces)
        if isinstance(batch, NativeBatch):
            self._entering.append(Entering(job, self._slots.enter(batch), done, logits))
        else:
            self._entering.append(Entering(job, self._slots.enter(None), 0, None))

    def read(self) -> None:
        """Read `tokens`, prompt pieces and ends of turns, update `logits`, and add the rows of jobs that are ready."""
        prompts = [entry for entry in self._entering if entry.unread]
        closing, self._closing = self._closing, []
        pieces: list[tuple[tuple[int, ...], int]] = [
            *(
                ((token,), job.request.prompt.reply_speaker)
                for token, job in zip(self.tokens, self.owners, strict=True)
            ),
            *(entry.unread[0] for entry in prompts),
            *((entry.pieces[-1][0][-1:], entry.pieces[-1][1]) for entry in closing),
        ]
        slots = [*self._row_slots, *(entry.slot for entry in prompts), *(entry.slot for entry in closing)]
        logits = self._read(slots, pieces) if pieces else self.logits[:0]
        of_rows, of_prompts, of_closing = logits.split([len(self.rows), len(prompts), len(closing)])
        for index, entry in enumerate(prompts):
            self._advance(entry, of_prompts[index : index + 1].clone())
        for index, closed in enumerate(closing):
            after = of_closing[index : index + 1].clone()
            self._snapshots.add(closed.pieces, self._slots.copy_of(closed.slot), after)
            self._slots.leave(closed.slot)
        parts = [of_rows]
        for entry in self._entering:
            if not entry.unread and entry.logits is not None:
                parts += [entry.logits] * self._begin(entry)
        self._entering = [entry for entry in self._entering if entry.unread]
        self.logits = torch.cat(parts)

    def _read(self, slots: list[int], pieces: Pieces | list[tuple[tuple[int, ...], int]]) -> torch.Tensor:
        tokens = [ids for ids, _ in pieces]
        return self._slots.read_rows(slots, tokens, [[speaker] * len(ids) for ids, speaker in pieces])

    def _advance(self, entry: Entering, logits: torch.Tensor) -> None:
        """Record that a prompt piece was read, and cache the state if a later message can continue from it."""
        entry.done, entry.logits = entry.done + 1, logits
        prompt = entry.job.request.prompt
        if prompt.pieces[entry.done - 1][1] == prompt.reply_speaker or not self._ends_with_turn:
            self._snapshots.add(prompt.pieces[: entry.done], self._slots.copy_of(entry.slot), logits)

    def _begin(self, entry: Entering) -> int:
        """Add the rows of a job whose prompt has been read, the first in its slot; return their number."""
        rows = entry.job.begin()
        self.rows += rows
        self.owners += [entry.job] * len(rows)
        self._row_slots.append(entry.slot)
        if len(rows) > 1:
            state = self._slots.copy_of(entry.slot)
            self._row_slots += [self._slots.enter(state) for _ in rows[1:]]
        return len(rows)

    def keep(self, indices: Sequence[int]) -> None:
        """Keep these rows and remove the others and the cancelled jobs that are entering."""
        kept = set(indices)
        for row, slot in enumerate(self._row_slots):
            if row not in kept:
                self._end(row, slot)
        self.rows, self.owners = _selected(self.rows, indices), _selected(self.owners, indices)
        self.tokens, self._row_slots = _selected(self.tokens, indices), _selected(self._row_slots, indices)
        for entry in self._entering:
            if entry.job.cancelled:
                self._slots.leave(entry.slot)
        self._entering = [entry for entry in self._entering if not entry.job.cancelled]

    def _end(self, row: int, slot: int) -> None:
        """Free the slot of a row, or, for a finished reply, use its state for the next turn first."""
        job, draft = self.owners[row], self.rows[row].draft
        if not self._ends_with_turn or job.cancelled or draft.stop_reason is None or len(job.rows) > 1:
            self._slots.leave(slot)
            return
        prompt = job.request.prompt
        reply = ((*draft.token_ids, self.tokens[row]), prompt.reply_speaker)
        self._closing.append(Closing(slot, (*prompt.pieces, reply)))


def _selected(values: Sequence[T], indices: Sequence[int]) -> list[T]:
    return [values[index] for index in indices]
