"""Continuous batching: one worker thread decodes for all conversations, which join and leave at any step.

In one step, the model reads parts of the prompts of new conversations together with the last token of every reply in
progress; then the next token of these replies is chosen. The state of each conversation has a separate slot in
memory, so other states are not copied when a conversation joins or leaves. The compiled library computes a row of the
batch independently of the other rows: a reply is identical to the one generated alone with the same seed. With other
models, the logits of a row are rounded differently beside other rows, by a few millionths of the largest logit in fp32;
`tests/chatbot/chat/test_shared.py` states the measured difference.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from typing import Any

import torch

from chatbot.chat.batches import PROMPT_TOKENS, SharedBatch
from chatbot.chat.bot import Chatbot, Reply, Request
from chatbot.chat.jobs import EncodingJob, Job, ReadAhead, TraceJob
from chatbot.chat.request import max_message_characters
from chatbot.chat.trace import TracedStep, check_traceable
from chatbot.chat.variants import MAX_VARIATION, latent_of
from chatbot.decoding.candidates import Draft
from chatbot.errors import XianliaoError
from chatbot.model.latent.gaussian import Normal
from chatbot.safety import Fixed

MAX_ENCODED = MAX_VARIATION + 1
"""Largest number of replies that a request of `Worker.encode` may have."""

SHUTTING_DOWN = "The server is shutting down. Try again after it has restarted."


class BusyError(XianliaoError):
    """The queue is full."""


class WorkerError(XianliaoError):
    """The worker failed on a reply, or has stopped."""


class Worker:
    """Thread that decodes for many conversations.

    Args:
        bot: Bot that replies; no other thread may use its model while the worker runs.
        max_rows: Maximum number of replies that are decoded at the same time; more wait in the queue.
        max_waiting: Maximum number of replies in the queue; more are refused. One named sender may have half of the
            queue.
        prompt_tokens: Maximum number of prompt tokens that are read in one step.
        run: Function that calls `function(*values, **named)`, which checks and tokenizes a text of `size` characters
            for `prepare`, `stream_replies` and `trace`; a server passes one that uses a bounded pool of threads.
        sender: Function that returns the sender of the reply being submitted by the calling thread; all None count as one
            unnamed sender. The sender with the fewest rows gets the next free row.

    Attributes:
        waiting: Queue of jobs.
        batches: Batches that are being decoded.
    """

    def __init__(
        self,
        bot: Chatbot,
        max_rows: int = 64,
        max_waiting: int = 256,
        run: Callable[..., Any] = lambda size, function, *values, **named: function(*values, **named),
        prompt_tokens: int = PROMPT_TOKENS,
        sender: Callable[[], Hashable] = lambda: None,
    ):
        self.bot, self.max_rows, self.max_waiting, self._run_sized = bot, max_rows, max_waiting, run
        self.prompt_tokens, self._sender = prompt_tokens, sender
        self.waiting: deque[Job] = deque()
        self.batches: list[SharedBatch] = []
        self._later: deque[ReadAhead] = deque(maxlen=max_waiting)  # used by the worker's thread alone
        self._shared: SharedBatch | None = None  # kept while it is empty, for its memory
        self._changed = threading.Condition()
        self._stopping, self._grace_seconds = False, 0.0
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def busy_rows(self) -> int:
        """Number of replies in progress."""
        return sum(map(len, self.batches))

    def submit(
        self,
        request: Request,
        deliver: Callable[[Reply | BaseException | None], None],
    ) -> Job:
        """Queue a reply; see `Job` for the arguments.

        Raises:
            BusyError: The queue is full, or the sender has half of it.
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
        job.sender = self._sender()
        with self._changed:
            if self._stopping:
                raise WorkerError(SHUTTING_DOWN)
            waiting = Counter(each.sender for each in self.waiting if not each.cancelled)
            if waiting.total() >= self.max_waiting:
                raise BusyError("Too many people are chatting right now; try again in a moment.")
            if job.sender is not None and waiting[job.sender] >= max(1, self.max_waiting // 2):
                raise BusyError("Too many of your replies are waiting; try again in a moment.")
            self.waiting.append(job)
            self._changed.notify()

    def prepare(self, turns: Sequence[str], seed: int | None = None, **changes: Any) -> Request:
        """Return a checked request; see `Chatbot.request`."""
        return self._run_sized(sum(map(len, turns)), self.bot.request, turns, seed, **changes)

    def fixed_answer(self, turns: Sequence[str]) -> Fixed | None:
        """Return the fixed text that answers a history; see `Chatbot.fixed_answer`."""
        return self._run_sized(sum(map(len, turns)), self.bot.fixed_answer, turns)

    def stream_replies(self, turns: Sequence[str], seed: int | None = None, **changes: Any) -> Iterator[Reply]:
        """Yield the same as `Chatbot.stream_replies`, decoded together with others; closing early cancels the reply."""
        request = self.prepare(turns, seed, **changes)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        yield from _received(self.submit(request, arrived.put), arrived)

    def trace(self, turns: Sequence[str], seed: int, **changes: Any) -> Iterator[TracedStep]:
        """Yield the steps of the reply of this seed; see `chatbot.chat.trace`."""
        request = self.prepare(turns, seed, **changes)
        check_traceable(request)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        *_, reply = _received(self.submit(request, arrived.put), arrived)
        draft = Draft(list(reply.token_ids), reply.log_prob, reply.stop_reason)
        job = TraceJob(request, arrived.put, reply=draft)
        self._queue(job)
        yield from _received(job, arrived)

    def encode(self, turns: Sequence[str], replies: Sequence[str], **changes: Any) -> Normal:
        """Return q(z|c,r) of replies to one history, `[R, Z]`, in coordinates in which p(z|c) is the standard normal.

        The replies are read in rows of the shared batch, one token per step, like replies that are decoded. A reply that
        is longer than the limit of the settings is cut off there.

        Args:
            turns: The history.
            replies: At most `MAX_ENCODED` replies.
            changes: As for `Chatbot.request`.

        Raises:
            XianliaoError: The model has no Gaussian latent variable, a fixed text answers the history, or the number of
                replies is 0 or too large.
        """
        latent = latent_of(self.bot)
        if latent is None or latent.is_discrete or not 0 < len(replies) <= MAX_ENCODED:
            raise XianliaoError(
                f"Encoding needs a model with a Gaussian latent variable and 1 to {MAX_ENCODED} replies."
            )
        request = self.prepare(turns, 0, **changes)
        check_traceable(request)
        ids = self._run_sized(sum(map(len, replies)), self._reply_ids, replies, request)
        arrived: queue.SimpleQueue[Any] = queue.SimpleQueue()
        job = EncodingJob(request, arrived.put, replies=ids)
        self._queue(job)
        (encoded,) = _received(job, arrived)
        return encoded

    def _reply_ids(self, replies: Sequence[str], request: Request) -> list[list[int]]:
        """Return the token ids of replies, each cut off at the limit of the settings."""
        settings = request.settings
        most = settings.limit_tokens
        texts = [text[: max_message_characters(most)] for text in replies]
        return [self.bot.reader.ids(text, settings.script)[:most] for text in texts]

    def close(self, seconds: float = 2.0) -> None:
        """Stop the worker: replies in progress have `seconds` to end, then the remaining jobs get an error."""
        with self._changed:
            self._stopping, self._grace_seconds = True, seconds
            self._changed.notify()
        self._thread.join(seconds + 2)

    # Methods below run in the worker's thread.

    @torch.inference_mode()
    def _run(self) -> None:
        # The compiled library splits its rows over threads; the remaining work of torch is too small to be split.
        torch.set_num_threads(1 if self.bot.model.native is not None else self._threads)
        deadline = None
        while True:
            with self._changed:
                while not self._stopping and not (self.waiting or self.batches or self._later):
                    self._changed.wait()
                if self._stopping and deadline is None:
                    deadline = time.monotonic() + self._grace_seconds
            if deadline is not None and (time.monotonic() > deadline or not (self.batches or self.waiting)):
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
                advanced = batch.step()
            except Exception as error:
                self._isolate(batch, error)
                continue
            for job in advanced:
                self._show(job)
            if not len(batch):
                self.batches.remove(batch)

    def _drop_cancelled(self) -> None:
        with self._changed:
            self.waiting = deque(job for job in self.waiting if not job.cancelled)
        for batch in self.batches:
            batch.drop_cancelled()
        self.batches = [batch for batch in self.batches if len(batch)]

    def _admit(self) -> None:
        """Start jobs from the queue while rows are free: always the oldest job of the sender with the fewest rows."""
        admitted: list[Job] = []
        free_rows, rows = self.max_rows - self.busy_rows, self._rows_of_senders()
        with self._changed:
            while self.waiting:
                job = min(self.waiting, key=lambda waiting: rows[waiting.sender])  # the first of equals
                # wait until enough rows are free; if no job runs, no more will be freed, so start
                if job.most_rows > free_rows and (self.busy_rows or admitted):
                    break
                self.waiting.remove(job)
                admitted.append(job)
                free_rows -= job.most_rows
                rows[job.sender] += job.most_rows
        if not self.waiting and not admitted and self._later and free_rows > 0:  # no prompt waits
            admitted.append(self._later.popleft())
        for job in admitted:
            try:
                self._start(job)
            except Exception as error:
                job.hand_over(error)

    def _rows_of_senders(self) -> Counter[Hashable]:
        rows: Counter[Hashable] = Counter()
        for batch in self.batches:
            for job in batch.jobs:
                rows[job.sender] += job.most_rows
        return rows

    def _start(self, job: Job) -> None:
        """Add a job to the shared batch, or to a separate batch if it may have caused a failure."""
        if job.alone or self._shared is None:
            batch = SharedBatch(self.bot, self.prompt_tokens)
            self._shared = self._shared if job.alone else batch
        else:
            batch = self._shared
        batch.enter(job)
        if batch not in self.batches:
            self.batches.append(batch)

    def _show(self, job: Job) -> None:
        """Deliver the new result of a job; if ranking its candidates fails, only this job ends."""
        try:
            job.show(self.bot)
            if job.ahead is not None:
                self._later.append(ReadAhead(job.request, job.ahead))
                job.ahead = None
        except Exception as error:
            job.hand_over(error)
            job.cancel()

    def _isolate(self, batch: SharedBatch, error: Exception) -> None:
        """After a failure, start every job of the batch again by itself; the job that fails again was the cause.

        Replies are a function of history, settings and seed, so the other jobs give the same replies as without the
        failure.
        """
        self.batches.remove(batch)
        self._shared = None if batch is self._shared else self._shared
        for job in batch.jobs:
            if job.alone:
                job.hand_over(error)
                continue
            job.alone = True
            with self._changed:
                self.waiting.appendleft(job)

    def _fail(self, error: Exception) -> None:
        """End all jobs with an error."""
        with self._changed:
            jobs = list(self.waiting)
            self.waiting.clear()
        jobs += [job for batch in self.batches for job in batch.jobs]
        self.batches, self._shared = [], None
        for job in dict.fromkeys(jobs):
            job.hand_over(error)


def _received(job: Job, arrived: queue.SimpleQueue[Any]) -> Iterator[Any]:
    """Yield the items of a job in the caller's thread, and cancel it at the end."""
    try:
        while (item := arrived.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        job.cancel()
