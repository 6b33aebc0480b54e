"""Gradio's queue of events, with bounds on what a client can leave in it.

Gradio keeps the results of every event until the browser that sent it reads them, however many and large they are and even
if no browser ever does. Here the numbers of sessions and events and the sizes of inputs and results are bounded, results
are stored as the bytes that are sent, and a session that no browser reads is dropped.
"""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from typing import Any, Literal

import orjson
from fastapi.encoders import jsonable_encoder
from gradio.data_classes import PredictBodyInternal
from gradio.queueing import Event, Queue
from gradio.server_messages import EventMessage, ProcessCompletedMessage, UnexpectedErrorMessage
from gradio.utils import run_coro_in_background
from starlette.requests import Request

MAX_SESSIONS = 2_000
MAX_SESSION_EVENTS = 32
"""Largest number of events of one session that are waiting, running, or not read."""

MAX_SESSION_BYTES = 16 * 2**20
MAX_BYTES = 32 * 2**20
"""Largest sum of the results that are not read and of the inputs of waiting and running events: of one session, of all."""

LARGE_BYTES, MOST_LARGE, MAX_LARGE_BYTES = 64 * 1024, 2, 16 * 2**20
"""Inputs of more bytes are large, and at most this many events with large inputs run at the same time, because Gradio makes
many copies of them, in the event loop. The last number bounds the sum of the large inputs."""

UNREAD_SECONDS = 60.0
"""A session is dropped if no browser has read its results for this long."""

READER_SECONDS = 12.0
"""A browser that is connected reads at least this often; see `Session.read`."""

CHECK_SECONDS = 5.0
FAILED = "The result cannot be shown."
GONE = "The results were not read in time. Reload the page."


class Output(dict[str, Any]):
    """Output of an event whose values are serialized.

    Attributes:
        size: Size in bytes.
    """

    size = 0


class Held:
    """Sum of the bytes that all sessions hold."""

    bytes = 0


class Session(asyncio.Queue[EventMessage]):
    """Results of a session that are not read, and sizes of its inputs.

    Args:
        total: Sum over all sessions, which the session updates.
        now: The time.
        user: User who opened it; None if the page asks for no log-in.

    Attributes:
        held: Bytes that the session holds.
        read: Time of the last read.
    """

    def __init__(self, total: Held, now: float, user: str | None = None):
        super().__init__()
        self.user = user
        self._total, self._inputs = total, dict[str, int]()
        self.held, self.read = 0, now

    def _put(self, item: EventMessage) -> None:
        self._count(size_of(item))
        super()._put(item)

    def _get(self) -> EventMessage:
        item = super()._get()
        self._count(-size_of(item))
        return item

    @property
    def results(self) -> int:
        """Bytes of the results."""
        return self.held - sum(self._inputs.values())

    @property
    def large_bytes(self) -> int:
        """Bytes of the large inputs."""
        return sum(size for size in self._inputs.values() if size > LARGE_BYTES)

    def input_bytes(self, event: str) -> int:
        """Return the size of the input of an event."""
        return self._inputs.get(event, 0)

    def begin(self, event: str, size: int) -> None:
        """Count the input of an event that waits."""
        self._inputs[event] = size
        self._count(size)

    def end(self, event: str) -> None:
        """Forget the input of an event that has ended."""
        self._count(-self._inputs.pop(event, 0))

    def clear(self, inputs: bool = False) -> None:
        """Throw all results away, and with `inputs` the sizes of inputs as well."""
        while not self.empty():
            self.get_nowait()
        for event in list(self._inputs) if inputs else ():
            self.end(event)

    def _count(self, size: int) -> None:
        self.held += size
        self._total.bytes += size


class EventIds(dict[str, set[str]]):
    """Events of each session; Gradio reads the entry of a session that may have been dropped meanwhile."""

    def __missing__(self, session: str) -> set[str]:
        return set()


class BoundedQueue(Queue):
    """The queue.

    Args:
        clock: Function that returns seconds.
        named: Arguments of Gradio's queue.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic, **named: Any):
        super().__init__(**named)
        self.now = clock
        self.sessions: dict[str, Session] = {}
        self.held = Held()
        self.pending_messages_per_session = Sessions(self)  # type: ignore[assignment]  # Gradio uses these methods alone
        self.pending_event_ids_session = EventIds()

    def start(self) -> None:
        """Start the queue."""
        super().start()
        run_coro_in_background(self._drop_unread)

    async def push(
        self, body: PredictBodyInternal, request: Request, username: str | None
    ) -> tuple[bool, Any, Literal["success", "error", "queue_full", "validator_error"]]:
        """Add an event, unless it would exceed a bound."""
        name, size = body.session_hash, request.scope.get("state", {}).get("body_bytes", 0)
        if name is None or not await self._has_room(name, size):
            return False, "The server is busy. Try again in a moment.", "queue_full"
        session = self.sessions.setdefault(name, self.new_session(username))
        if session.user != username:
            return False, "This session belongs to another user. Reload the page.", "queue_full"
        for copy in ("_body", "_json"):  # Gradio keeps the request until the event has ended
            request.__dict__.pop(copy, None)
        success, event, state = await super().push(body, request, username)
        if success and isinstance(event, str) and event in self.event_ids_to_events:
            session.begin(event, size)
        return success, event, state

    def send_message(self, event: Event, event_message: EventMessage) -> None:
        """Store a result for the browser as the bytes that are sent, unless that exceeds the bounds."""
        session = self.sessions.get(event.session_hash)
        if session is None or not event.alive:
            return
        output = getattr(event_message, "output", None)
        if isinstance(output, dict) and "data" in output:
            try:
                data = orjson.dumps(output["data"], default=jsonable_encoder, option=orjson.OPT_SERIALIZE_NUMPY)
            except (TypeError, ValueError):  # a lone surrogate or a huge number; the browser would wait for ever
                if not isinstance(event_message, ProcessCompletedMessage):
                    return
                output, data = {"error": FAILED}, b"[]"
                event_message = event_message.model_copy(update={"success": False})
            serialized = Output({**output, "data": orjson.Fragment(data)})
            serialized.size = len(data)
            event_message = event_message.model_copy(update={"output": serialized})
        event_message.event_id = event._id
        session.put_nowait(event_message)
        if session.held > MAX_SESSION_BYTES:
            self._throw_away(session)
        while self.held.bytes > MAX_BYTES:
            self._throw_away(max(self.sessions.values(), key=lambda session: session.results))

    def takes(self, size: int) -> bool:
        """Whether the bound on the total size of large inputs leaves room for an input of this size."""
        if size <= LARGE_BYTES:
            return True
        return sum(session.large_bytes for session in self.sessions.values()) + size <= MAX_LARGE_BYTES

    def get_events(self) -> tuple[list[Event], bool, str] | None:
        """Return a list of the next event that may run, False (not a batch), and the name of its part of the queue.

        The result is None if no event may run.
        """
        running = [event for job in self.active_jobs for event in job or ()]
        has_room = sum(map(self._is_large, running)) < MOST_LARGE
        parts = list(self.event_queue_per_concurrency_id.items())
        random.shuffle(parts)
        for name, part in parts:
            if part.concurrency_limit is None or part.current_concurrency < part.concurrency_limit:
                for event in part.queue:
                    if has_room or not self._is_large(event):
                        part.queue.remove(event)
                        return [event], False, name
        return None

    def _is_large(self, event: Event) -> bool:
        session = self.sessions.get(event.session_hash)
        return session is not None and session.input_bytes(event._id) > LARGE_BYTES

    async def reset_iterators(self, event_id: str) -> None:
        """Forget the input of an event that has ended."""
        event = self.event_ids_to_events.get(event_id)
        if event is not None and (session := self.sessions.get(event.session_hash)) is not None:
            session.end(event_id)
        await super().reset_iterators(event_id)

    def compute_analytics_summary(self, records: object) -> dict[str, Any]:
        """Return nothing: this server does not show Gradio's statistics, which cost more than the events themselves."""
        return {}

    def has_session(self, name: str, user: str | None) -> bool:
        """Whether a session exists and this user opened it."""
        session = self.sessions.get(name)
        return session is not None and session.user == user

    def new_session(self, user: str | None = None) -> Session:
        """Return an empty session of a user, which is not among the sessions yet."""
        return Session(self.held, self.now(), user)

    def forget(self, name: str) -> None:
        """Forget the results of a session."""
        if (session := self.sessions.pop(name, None)) is not None:
            session.clear(inputs=True)
        self.pending_event_ids_session.pop(name, None)

    async def drop(self, name: str) -> None:
        """Cancel the events of a session and forget its results."""
        self.forget(name)
        await self.clean_events(session_hash=name)

    async def drop_of(self, user: str) -> None:
        """Drop the sessions of a user, so that a later log-in does not read their results."""
        for name in [name for name, session in self.sessions.items() if session.user == user]:
            await self.drop(name)

    async def drop_unread(self) -> None:
        """Drop the sessions that no browser has read for `UNREAD_SECONDS`."""
        before = self.now() - UNREAD_SECONDS
        for name in [name for name, session in self.sessions.items() if session.read < before]:
            await self.drop(name)

    async def _has_room(self, name: str, size: int) -> bool:
        """Whether an event of a session is within the bounds, after dropping sessions that have no reader if need be."""
        session = self.sessions.get(name)
        if session is not None and (
            len(self.pending_event_ids_session[name]) >= MAX_SESSION_EVENTS or session.held + size > MAX_SESSION_BYTES
        ):
            return False
        if not self.takes(size):
            return False
        while (session is None and len(self.sessions) >= MAX_SESSIONS) or self.held.bytes + size > MAX_BYTES:
            before = self.now() - READER_SECONDS
            without_reader = [other for other, each in self.sessions.items() if each.read < before and other != name]
            if not without_reader:
                return False
            await self.drop(max(without_reader, key=lambda other: self.sessions[other].held))
        return True

    @staticmethod
    def _throw_away(session: Session) -> None:
        """Replace the results of a session by a message that they are lost; its inputs stay counted."""
        session.clear()
        session.put_nowait(UnexpectedErrorMessage(message=GONE))

    async def _drop_unread(self) -> None:
        while not self.stopped:
            await asyncio.sleep(CHECK_SECONDS)
            await self.drop_unread()


class Sessions:
    """The sessions of a queue in the form in which Gradio's routes use them.

    A browser whose session was dropped meanwhile gets the end of its stream, because an exception in a stream would be a
    traceback in the log.
    """

    def __init__(self, queue: BoundedQueue):
        self._queue = queue

    def __contains__(self, name: str) -> bool:
        return True

    def __getitem__(self, name: str) -> Session:
        """Return a session to be read."""
        if (session := self._queue.sessions.get(name)) is None:
            session = Session(Held(), self._queue.now())
            session.put_nowait(ProcessCompletedMessage(output={"error": GONE}, success=False, event_id="gone"))
            return session
        session.read = self._queue.now()
        return session

    def __delitem__(self, name: str) -> None:
        """Forget a session whose browser has left."""
        self._queue.forget(name)

    def get(self, name: str) -> Session | None:
        """Return a session for a heartbeat, which is not a read."""
        return self._queue.sessions.get(name)


def size_of(message: EventMessage) -> int:
    """Return the approximate size of a result in bytes."""
    output = getattr(message, "output", None)
    return 200 + (output.size if isinstance(output, Output) else 0)
