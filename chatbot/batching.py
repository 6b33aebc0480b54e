"""Continuous batching: one worker decodes for all conversations at once; they join and leave at any step.

Every tick of the worker reads the next turn of all that are new, together, and then takes one step for all whose reply is
under way, together. A conversation's state has a constant size, so joining and leaving is copying a few hundred kilobytes.
With the compiled network a row's numbers do not depend on the other rows, so a reply is the one that the same seed gives
alone. Without it, and for beam search, every conversation steps by itself: slower, and again exactly its own reply.
"""

from __future__ import annotations

import queue
import random
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field

import torch

from chatbot.bot import Chatbot, Reply, Request, candidate_seeds
from chatbot.errors import XianliaoError
from chatbot.generate import Live, choose, repeated
from chatbot.next_token import Draft
from chatbot.steps import Steps, start_steps


class BusyError(XianliaoError):
    """Too many conversations wait already."""


class WorkerError(XianliaoError):
    """The worker failed on a reply, or has stopped."""


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
    """

    request: Request
    deliver: Callable[[Reply | BaseException | None], None]
    cancelled: bool = False
    alone: bool = False
    delivered: int = 0
    rows: list[Live] = field(default_factory=list)

    def cancel(self) -> None:
        """Frees its place; nothing more is delivered after the step under way."""
        self.cancelled = True


@dataclass
class Lane:
    """Rows that step together: all live ones with the compiled network, those of one job otherwise."""

    steps: Steps
    logits: torch.Tensor
    owners: list[Job]  # of each row
    rows: list[Live]


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
        self.lanes: list[Lane] = []
        self.searches: list[tuple[Job, Iterator[Draft]]] = []
        self._changed = threading.Condition()
        self._stopping, self._deadline = False, 0.0
        self._thread = threading.Thread(target=self._run, name="decoding", daemon=True)
        self._thread.start()

    @property
    def busy_rows(self) -> int:
        """Replies under way."""
        return sum(len(lane.rows) for lane in self.lanes) + len(self.searches)

    def submit(self, request: Request, deliver: Callable[[Reply | BaseException | None], None]) -> Job:
        """Puts a reply in the queue.

        Raises:
            BusyError: The queue is full.
            WorkerError: The worker has stopped.
        """
        job = Job(request, deliver)
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
        request = self.bot.request(turns, seed, **changes)
        arrived: queue.SimpleQueue = queue.SimpleQueue()
        job = self.submit(request, arrived.put)
        try:
            while (reply := arrived.get()) is not None:
                if isinstance(reply, BaseException):
                    raise reply
                yield reply
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
        for lane in list(self.lanes):
            self._keep(lane, [place for place, job in enumerate(lane.owners) if not job.cancelled])

    def _keep(self, lane: Lane, places: list[int]) -> None:
        """Keeps these rows of a lane; one without rows goes."""
        if len(places) == len(lane.rows):
            return
        if not places:
            self.lanes.remove(lane)
            return
        lane.steps.select(torch.tensor(places))
        lane.logits = lane.logits[places]
        lane.owners, lane.rows = [lane.owners[p] for p in places], [lane.rows[p] for p in places]

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
        together = [job for job in taken if self._joins(job)]
        if together:
            try:
                self._enter(together)
            except Exception:
                for job in together:
                    job.alone = True
                taken = [*together, *(job for job in taken if not self._joins(job))]
        for job in taken:
            if not self._joins(job):
                try:
                    self._enter_alone(job)
                except Exception as error:
                    _deliver(job, error)

    def _joins(self, job: Job) -> bool:
        """Whether it can share a lane."""
        compiled = getattr(self.bot.model, "native", None) is not None
        return compiled and not job.alone and job.request.settings.method != "beam"

    def _enter(self, jobs: list[Job]) -> None:
        """Reads the prompts of several jobs, turn by turn but all together, and joins their rows to the lane."""
        states: dict[int, tuple[Steps, torch.Tensor]] = {}
        left: dict[int, int] = {}
        for number, job in enumerate(jobs):
            pieces = job.request.prompt.pieces
            done, steps, logits = self.bot.snapshots.find(pieces)
            states[number] = (start_steps(self.bot.model) if steps is None else steps, logits)
            left[number] = done
        while unread := [number for number, job in enumerate(jobs) if left[number] < len(job.request.prompt.pieces)]:
            joined = states[unread[0]][0].join([states[number][0] for number in unread])
            pieces = [jobs[number].request.prompt.pieces[left[number]] for number in unread]
            logits = joined.read([ids for ids, _ in pieces], [[speaker] * len(ids) for ids, speaker in pieces])
            for row, number in enumerate(unread):
                left[number] += 1
                steps = joined.take(torch.tensor([row]))
                states[number] = (steps, logits[row : row + 1].clone())
                key = jobs[number].request.prompt.pieces[: left[number]]
                self.bot.snapshots.keep(key, steps.clone(), states[number][1])
        owners, rows = [], []
        parts, first = [], []
        for number, job in enumerate(jobs):
            job.rows = _new_rows(job.request)
            owners += [job] * len(job.rows)
            rows += job.rows
            parts += [states[number][0]] * len(job.rows)
            first += [states[number][1]] * len(job.rows)
        shared = next((lane for lane in self.lanes if not lane.owners[0].alone), None)
        if shared is None:
            self.lanes.append(Lane(parts[0].join(parts), torch.cat(first), owners, rows))
        else:
            shared.steps = shared.steps.join([shared.steps, *parts])
            shared.logits = torch.cat([shared.logits, *first])
            shared.owners, shared.rows = [*shared.owners, *owners], [*shared.rows, *rows]

    def _enter_alone(self, job: Job) -> None:
        """Reads a prompt and gives the job a lane of its own, or a search."""
        steps, logits = self.bot.steps_after(job.request.prompt)
        if job.request.settings.method == "beam":
            self.searches.append((job, self.bot.drafts(job.request, steps, logits)))
            return
        job.rows = _new_rows(job.request)
        logits = repeated(steps, logits, len(job.rows))
        self.lanes.append(Lane(steps, logits, [job] * len(job.rows), list(job.rows)))

    def _step(self, lane: Lane) -> None:
        """Chooses a token for every row, delivers, and reads the tokens of those that go on."""
        tokens = choose(lane.logits, lane.rows, self.bot.vocabulary)
        for job in dict.fromkeys(lane.owners):
            self._show(job)
        going = [place for place, row in enumerate(lane.rows) if row.draft.stop_reason is None]
        tokens = [tokens[place] for place in going]
        self._keep(lane, going)
        if going:
            speakers = torch.tensor(
                [job.request.prompt.reply_speaker for job in lane.owners], device=lane.logits.device
            )
            lane.logits = lane.steps(torch.tensor(tokens, device=lane.logits.device), speakers)

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
        """One step of a beam search."""
        job, drafts = search
        try:
            draft = next(drafts, None)
        except Exception as error:
            self.searches.remove(search)
            _deliver(job, error)
            return
        _deliver(job, None if draft is None else self.bot.show(job.request, draft))
        if draft is None:
            self.searches.remove(search)

    def _suspect(self, lane: Lane, error: Exception) -> None:
        """After a failure every job of the lane begins anew by itself; the one that fails again was the cause.

        Replies are a function of history, settings and seed, so the others say what they would have said.
        """
        self.lanes.remove(lane)
        for job in dict.fromkeys(lane.owners):
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
        jobs += [job for lane in self.lanes for job in lane.owners] + [job for job, _ in self.searches]
        self.lanes, self.searches = [], []
        for job in dict.fromkeys(jobs):
            _deliver(job, error)


def _new_rows(request: Request) -> list[Live]:
    seeds = candidate_seeds(request.seed, request.settings.candidates)
    return [Live(request.settings, random.Random(seed), request.answered.own) for seed in seeds]


def _deliver(job: Job, what: Reply | BaseException | None) -> None:
    """Whoever waits may be gone; that is no reason to stop for the others."""
    try:
        job.deliver(what)
    except Exception:
        job.cancel()
