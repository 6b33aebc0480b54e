"""Continuous batching: one worker thread decodes for all conversations, which join and leave at any step.

Every tick of the worker reads, all together, the next turn of every new conversation and the last token of every reply
in progress, and then chooses the next token of these replies. The state of a conversation has a constant size and a
slot, so joining copies a few hundred kilobytes, and leaving copies no state. In the compiled library the numbers of a
row do not depend on the other rows, so a reply is the same as alone with the same seed. Without the library, and for
beam search, every conversation steps by itself: slower, and again with the same reply.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch

from chatbot.chat.batches import ExclusiveBatch, Job, SharedBatch
from chatbot.chat.bot import Chatbot, Reply, Request
from chatbot.chat.trace import TracedStep, trace
from chatbot.decoding.batch import native_network
from chatbot.decoding.sampler import choose
from chatbot.errors import XianliaoError
from chatbot.safety import Fixed

SHUTTING_DOWN = "The server is shutting down; try again when it is back."


class BusyError(XianliaoError):
    """The queue is full."""


class WorkerError(XianliaoError):
    """The worker failed on a reply, or has stopped."""


class Worker:
    """Thread that decodes for many conversations.

    Args:
        bot: Bot that replies; no other thread may use its model while the worker runs.
        max_rows: Maximum number of replies that are decoded at the same time; more wait in the queue.
        max_waiting: Maximum number of replies in the queue; more are refused.
        run: Function that calls `function(*values, **named)` for a text of `size` characters; a server passes a bounded pool
            of threads. It reads the texts of `prepare`, `stream_replies` and `trace`.

    Attributes:
        waiting: Queue of jobs.
        batches: Batches that are being decoded.
        generators: Jobs that are decoded by a generator (beam search), or run one instead of decoding.
    """

    def __init__(
        self,
        bot: Chatbot,
        max_rows: int = 64,
        max_waiting: int = 256,
        run: Callable[..., Any] = lambda size, function, *values, **named: function(*values, **named),
    ):
        self.bot, self.max_rows, self.max_waiting, self._run_sized = bot, max_rows, max_waiting, run
        self.waiting: deque[Job] = deque()
        self.batches: list[ExclusiveBatch | SharedBatch] = []
        self.generators: list[tuple[Job, Iterator[Any]]] = []
        self._shared: SharedBatch | None = None  # kept while it is empty, for its memory
        self._changed = threading.Condition()
        self._stopping, self._grace_seconds = False, 0.0
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def busy_rows(self) -> int:
        """Number of replies in progress."""
        return sum(map(len, self.batches)) + len(self.generators)

    def submit(
        self,
        request: Request,
        deliver: Callable[[Reply | BaseException | None], None],
    ) -> Job:
        """Queue a reply; see `Job` for the arguments.

        Raises:
            BusyError: The queue is full.
            WorkerError: The worker has stopped.
        """
        job = Job(request, deliver)
        if request.fixed is not None:  # needs no decoding, so it never waits and is never refused
            deliver(self.bot.show_fixed(request, request.fixed))
            deliver(None)
        else:
            self._queue(job)
        return job

    def _queue(self, job: Job) -> None:
        with self._changed:
            if self._stopping:
                raise WorkerError(SHUTTING_DOWN)
            if sum(not waiting.cancelled for waiting in self.waiting) >= self.max_waiting:
                raise BusyError("Too many people are chatting right now; try again in a moment.")
            self.waiting.append(job)
            self._changed.notify()

    def prepare(self, turns: Sequence[str], seed: int | None = None, **changes: Any) -> Request:
        """Return a checked request; see `Chatbot.request`."""
        return self._run_sized(sum(map(len, turns)), self.bot.request, turns, seed, **changes)

    def fixed_answer(self, turns: Sequence[str]) -> Fixed | None:
        """Return the fixed text that answers a history; see `Chatbot.fixed_answer`."""
        return self._run_sized(sum(map(len, turns)), self.bot.fixed_answer, turns)

    def stream_replies(self, turns: Sequence[str], seed: int | None = None, **changes: Any) -> Iterator[Reply]:
        """Yield the same as `Chatbot.stream_replies`, decoded together with others; closing it early cancels it."""
        request = self.prepare(turns, seed, **changes)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        yield from _received(self.submit(request, arrived.put), arrived)

    def trace(self, turns: Sequence[str], seed: int, **changes: Any) -> Iterator[TracedStep]:
        """Yield the steps of the reply of this seed; see `chatbot.chat.trace`."""
        request = self.prepare(turns, seed, **changes)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        job = Job(request, arrived.put, generator=lambda: trace(self.bot, request))
        self._queue(job)
        yield from _received(job, arrived)

    def close(self, seconds: float = 2.0) -> None:
        """Stop the worker: replies in progress may end within `seconds`, then all jobs get an error."""
        with self._changed:
            self._stopping, self._grace_seconds = True, seconds
            self._changed.notify()
        self._thread.join(seconds + 2)

    # Methods below run in the worker's thread.

    @torch.inference_mode()
    def _run(self) -> None:
        # The compiled library splits its rows over threads; what torch does beside it is too small to be split.
        torch.set_num_threads(1 if native_network(self.bot.model) is not None else self._threads)
        deadline = None
        while True:
            with self._changed:
                while not self._stopping and not self.waiting and not self.batches and not self.generators:
                    self._changed.wait()
                if self._stopping and deadline is None:
                    deadline = time.monotonic() + self._grace_seconds
            is_idle = not (self.batches or self.generators or self.waiting)
            if deadline is not None and (time.monotonic() > deadline or is_idle):
                break
            self._tick()
        self._fail(WorkerError(SHUTTING_DOWN))

    def _tick(self) -> None:
        """Advance every reply by one step."""
        self._drop_cancelled()
        try:
            self._admit()
        except Exception as error:
            self._fail(error)
        for batch in list(self.batches):
            try:
                self._step(batch)
            except Exception as error:
                self._isolate(batch, error)
        for entry in list(self.generators):
            self._advance(entry)

    def _drop_cancelled(self) -> None:
        with self._changed:
            self.waiting = deque(job for job in self.waiting if not job.cancelled)
        self.generators = [(job, items) for job, items in self.generators if not job.cancelled]
        for batch in self.batches:
            if any(job.cancelled for job in batch.jobs):
                batch.keep([row for row, job in enumerate(batch.owners) if not job.cancelled])
        self.batches = [batch for batch in self.batches if len(batch)]

    def _admit(self) -> None:
        """Start jobs from the queue, in order, while there are free rows."""
        admitted: list[Job] = []
        free_rows = self.max_rows - self.busy_rows
        with self._changed:
            while self.waiting:
                needed = self.waiting[0].request.settings.candidates
                # a job that needs more rows than there are starts when no other job runs
                if needed > free_rows and (self.busy_rows or admitted):
                    break
                admitted.append(self.waiting.popleft())
                free_rows -= needed
        for job in admitted:
            try:
                self._start(job)
            except Exception as error:
                _deliver(job, error)

    def _start(self, job: Job) -> None:
        """Add a job to the shared batch, to a batch of its conversation alone, or to the generators."""
        if job.generator is not None:
            self.generators.append((job, job.generator()))
        elif job.request.settings.method == "beam":
            self.generators.append((job, self.bot.drafts(job.request, *self.bot.read_prompt(job.request.prompt))))
        elif job.alone or native_network(self.bot.model) is None:
            self.batches.append(ExclusiveBatch(self.bot, job))
        else:
            if self._shared is None:
                self._shared = SharedBatch(self.bot)
            self._shared.enter(job)
            if self._shared not in self.batches:
                self.batches.append(self._shared)

    def _step(self, batch: ExclusiveBatch | SharedBatch) -> None:
        """Read the last tokens, choose a token for every row, deliver, and remove the rows that have ended."""
        batch.read()
        if batch.rows:
            batch.tokens = choose(batch.logits, batch.rows, self.bot.vocabulary)
            for job in dict.fromkeys(batch.owners):
                self._show(job)
            unfinished = [index for index, row in enumerate(batch.rows) if row.draft.stop_reason is None]
            if len(unfinished) < len(batch.rows):
                batch.keep(unfinished)
        if not len(batch):
            self.batches.remove(batch)

    def _show(self, job: Job) -> None:
        """Deliver the reply so far; see `Chatbot.best_draft`."""
        candidates = [row.draft for row in job.rows]
        draft = self.bot.best_draft(job.request, candidates)
        has_ended = all(candidate.stop_reason is not None for candidate in candidates)
        steps = max(len(candidate.token_ids) for candidate in candidates) + has_ended
        if steps > job.delivered and not job.cancelled:  # a job that started again does not deliver a step twice
            job.delivered = steps
            _deliver(job, self.bot.show(job.request, draft))
            if has_ended:
                _deliver(job, None)

    def _advance(self, entry: tuple[Job, Iterator[Any]]) -> None:
        """Advance a generator by one item and deliver it."""
        job, items = entry
        try:
            item = next(items)
        except StopIteration:
            self.generators.remove(entry)
            _deliver(job, None)
            return
        except Exception as error:
            self.generators.remove(entry)
            _deliver(job, error)
            return
        if item is not None:
            _deliver(job, item if job.generator is not None else self.bot.show(job.request, item))

    def _isolate(self, batch: ExclusiveBatch | SharedBatch, error: Exception) -> None:
        """After a failure, start every job of the batch again by itself; the job that fails again was the cause.

        Replies are a function of history, settings and seed, so the other jobs give the same replies as without it.
        """
        self.batches.remove(batch)
        self._shared = None if batch is self._shared else self._shared
        for job in batch.jobs:
            if job.alone:
                _deliver(job, error)
                continue
            job.alone = True
            with self._changed:
                self.waiting.appendleft(job)

    def _fail(self, error: Exception) -> None:
        """End all jobs with an error."""
        with self._changed:
            jobs = list(self.waiting)
            self.waiting.clear()
        jobs += [job for batch in self.batches for job in batch.jobs] + [job for job, _ in self.generators]
        self.batches, self.generators, self._shared = [], [], None
        for job in dict.fromkeys(jobs):
            _deliver(job, error)


def _received(job: Job, arrived: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """Yield the items of a job in the caller's thread, and cancel it at the end."""
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        job.cancel()


def _deliver(job: Job, item: Reply | TracedStep | BaseException | None) -> None:
    """Deliver an item; an exception of the receiver cancels its job and does not stop the others."""
    try:
        job.deliver(item)
    except Exception:
        job.cancel()
