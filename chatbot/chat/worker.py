"""Continuous batching: one worker decodes for all conversations at once; they join and leave at any step.

Every tick of the worker reads, all together, the next turn of all that are new and the last token of all whose reply is
under way, and then chooses the next token of these. A conversation's state has a constant size and a place of its own, so
entering is copying a few hundred kilobytes, and leaving nothing. With the compiled network a row's numbers do not depend on
the other rows, so a reply is the one that the same seed gives alone. Without it, and for beam search, every conversation
steps by itself: slower, and again exactly its own reply.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import torch

from chatbot.chat.batches import Job, OwnLane, SharedLane
from chatbot.chat.bot import Chatbot, Reply, Request
from chatbot.chat.trace import TracedStep, trace
from chatbot.decoding.candidates import Draft
from chatbot.decoding.sampler import choose
from chatbot.errors import XianliaoError

END = object()
"""Of what is gone through."""


class BusyError(XianliaoError):
    """Too many conversations wait already."""


class WorkerError(XianliaoError):
    """The worker failed on a reply, or has stopped."""


class Worker:
    """Decodes for many conversations in a thread of its own.

    Args:
        bot: Whose replies they are; nobody else may use its model while the worker runs.
        most_rows: Replies that are decoded at the same time; more wait.
        most_waiting: Replies that may wait; more are refused.
    """

    def __init__(self, bot: Chatbot, most_rows: int = 64, most_waiting: int = 256):
        self.bot, self.most_rows, self.most_waiting = bot, most_rows, most_waiting
        self.waiting: deque[Job] = deque()
        self.lanes: list[OwnLane | SharedLane] = []
        self.searches: list[tuple[Job, Iterator[Draft]]] = []
        self._shared: SharedLane | None = None  # kept when it is empty, for its memory
        self._changed = threading.Condition()
        self._stopping, self._deadline = False, 0.0
        self._threads = torch.get_num_threads()
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def busy_rows(self) -> int:
        """Replies under way."""
        return sum(map(len, self.lanes)) + len(self.searches)

    def submit(
        self,
        request: Request,
        deliver: Callable[[Reply | BaseException | None], None],
        walk: Callable[[], Iterator] | None = None,
    ) -> Job:
        """Puts a reply, or something else to go through, in the queue; see `Job`.

        Raises:
            BusyError: The queue is full.
            WorkerError: The worker has stopped.
        """
        job = Job(request, deliver, walk=walk)
        if request.fixed is not None and walk is None:  # needs no decoding, so it never waits and is never refused
            deliver(self.bot.show_fixed(request))
            deliver(None)
            return job
        with self._changed:
            if self._stopping:
                raise WorkerError("The server is shutting down; try again when it is back.")
            if sum(not waiting.cancelled for waiting in self.waiting) >= self.most_waiting:
                raise BusyError("Too many people are chatting right now; try again in a moment.")
            self.waiting.append(job)
            self._changed.notify()
        return job

    def stream_replies(self, turns: Sequence[str], seed: int | None = None, **changes) -> Iterator[Reply]:
        """What `Chatbot.stream_replies` yields, decoded together with others; closing it early frees the place."""
        yield from self._arriving(self.bot.request(turns, seed, **changes))

    def trace(self, turns: Sequence[str], seed: int, **changes) -> Iterator[TracedStep]:
        """How the reply of this seed is chosen, step by step; see `chatbot.chat.trace`."""
        request = self.bot.request(turns, seed, **changes)
        yield from self._arriving(request, lambda: trace(self.bot, request))

    def _arriving(self, request: Request, walk: Callable[[], Iterator] | None = None) -> Iterator:
        """What is delivered, for whoever waits in a thread."""
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        job = self.submit(request, arrived.put, walk)
        try:
            while (what := arrived.get()) is not None:
                if isinstance(what, BaseException):
                    raise what
                yield what
        finally:
            job.cancel()

    def close(self, seconds: float = 2.0) -> None:
        """Lets what is under way end for so long, then stops; what still waits gets an error."""
        with self._changed:
            self._stopping, self._deadline = True, seconds
            self._changed.notify()
        self._thread.join(seconds + 2)

    # The worker's thread, from here on.

    @torch.inference_mode()
    def _run(self) -> None:
        # The compiled step shares its rows out itself; what torch does beside it is too small to be shared.
        torch.set_num_threads(1 if self.bot.model.native is not None else self._threads)
        until = None
        while True:
            with self._changed:
                while not self._stopping and not self.waiting and not self.lanes and not self.searches:
                    self._changed.wait()
                if self._stopping and until is None:
                    until = time.monotonic() + self._deadline
            if until is not None and (time.monotonic() > until or not (self.lanes or self.searches or self.waiting)):
                break
            self._tick()
        self._fail(WorkerError("The server is shutting down; try again when it is back."))

    def _tick(self) -> None:
        """One step for everybody."""
        self._drop_cancelled()
        try:
            self._admit()
        except Exception as error:
            self._fail(error)
        for lane in list(self.lanes):
            try:
                self._step(lane)
            except Exception as error:
                self._suspect(lane, error)
        for search in list(self.searches):
            self._search(search)

    def _drop_cancelled(self) -> None:
        with self._changed:
            self.waiting = deque(job for job in self.waiting if not job.cancelled)
        self.searches = [(job, drafts) for job, drafts in self.searches if not job.cancelled]
        for lane in self.lanes:
            if any(job.cancelled for job in lane.jobs):
                lane.keep([row for row, job in enumerate(lane.owners) if not job.cancelled])
        self.lanes = [lane for lane in self.lanes if len(lane)]

    def _admit(self) -> None:
        """Takes jobs from the queue, in order, as long as there is room, reads their prompts and gives them rows."""
        taken: list[Job] = []
        room = self.most_rows - self.busy_rows
        with self._changed:
            while self.waiting:
                wanted = self.waiting[0].request.settings.candidates
                if wanted > room and (self.busy_rows or taken):  # one that never fits comes when nothing else runs
                    break
                taken.append(self.waiting.popleft())
                room -= wanted
        for job in taken:
            try:
                self._enter(job)
            except Exception as error:
                _deliver(job, error)

    def _enter(self, job: Job) -> None:
        """Gives a job its place in the shared lane, a lane of its own, or a search."""
        native = self.bot.model.native
        if job.walk is not None:
            self.searches.append((job, job.walk()))
        elif job.request.settings.method == "beam":
            self.searches.append((job, self.bot.drafts(job.request, *self.bot.steps_after(job.request.prompt))))
        elif native is None or job.alone:
            self.lanes.append(OwnLane(self.bot, job))
        else:
            if self._shared is None:
                self._shared = SharedLane(self.bot)
            self._shared.enter(job)
            if self._shared not in self.lanes:
                self.lanes.append(self._shared)

    def _step(self, lane: OwnLane | SharedLane) -> None:
        """Reads what was chosen last, chooses a token for every row, delivers, and drops the rows that ended."""
        lane.read()
        if lane.rows:
            lane.tokens = choose(lane.logits, lane.rows, self.bot.vocabulary)
            for job in dict.fromkeys(lane.owners):
                self._show(job)
            going = [place for place, row in enumerate(lane.rows) if row.draft.stop_reason is None]
            if len(going) < len(lane.rows):
                lane.keep(going)
        if not len(lane):
            self.lanes.remove(lane)

    def _show(self, job: Job) -> None:
        """Delivers what there is; of several candidates the best when all have ended."""
        drafts = [row.draft for row in job.rows]
        ended = all(draft.stop_reason is not None for draft in drafts)
        draft = drafts[0] if len(drafts) == 1 else Draft()
        if ended and len(drafts) > 1:
            ranker = self.bot.ranker(job.request.settings)
            draft = drafts[ranker.best([job.request.answered], [drafts], job.request.settings)[0]]
        steps = max(len(each.token_ids) for each in drafts) + ended
        if steps > job.delivered and not job.cancelled:  # one that was begun anew says nothing twice
            job.delivered = steps
            _deliver(job, self.bot.show(job.request, draft))
            if ended:
                _deliver(job, None)

    def _search(self, search: tuple[Job, Iterator[Draft]]) -> None:
        """One step of a beam search, or of something else that is gone through."""
        job, drafts = search
        try:
            draft = next(drafts, END)
        except Exception as error:
            self.searches.remove(search)
            _deliver(job, error)
            return
        if draft is END:
            _deliver(job, None)
            self.searches.remove(search)
        elif draft is not None:
            _deliver(job, draft if job.walk is not None else self.bot.show(job.request, draft))

    def _suspect(self, lane: OwnLane | SharedLane, error: Exception) -> None:
        """After a failure every job of the lane begins anew by itself; the one that fails again was the cause.

        Replies are a function of history, settings and seed, so the others say what they would have said.
        """
        self.lanes.remove(lane)
        self._shared = None if lane is self._shared else self._shared
        for job in lane.jobs:
            if job.alone:
                _deliver(job, error)
                continue
            job.alone = True
            with self._changed:
                self.waiting.appendleft(job)

    def _fail(self, error: Exception) -> None:
        """Ends everything with an error."""
        with self._changed:
            jobs = list(self.waiting)
            self.waiting.clear()
        jobs += [job for lane in self.lanes for job in lane.jobs] + [job for job, _ in self.searches]
        self.lanes, self.searches, self._shared = [], [], None
        for job in dict.fromkeys(jobs):
            _deliver(job, error)


def _deliver(job: Job, what: Reply | BaseException | None) -> None:
    """Whoever waits may be gone; that is no reason to stop for the others."""
    try:
        job.deliver(what)
    except Exception:
        job.cancel()
