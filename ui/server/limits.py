"""Limits of one server: request rate, and request bodies that arrive or wait for an answer."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field

from starlette.types import Message, Receive

from ui.api.schemas import ApiError
from ui.options import ServeOptions
from ui.server.access import Access
from ui.server.logs import EqualLines
from ui.server.metrics import Metrics
from ui.server.origins import Origins
from ui.server.page_routes import PageRules
from ui.server.work import WorkPool

MAX_SENDERS = 10_000
"""Number of senders whose requests are counted; the sender with the oldest last request is forgotten first."""

UNCOUNTED_BODY_BYTES = 16 * 1024
"""Number of bytes of every body that do not count towards the bound on all arriving bodies: ordinary requests are
smaller, so they arrive even while large bodies use up that bound."""

DRAIN_BYTES = 16 * 2**20
DRAIN_SECONDS = 2.0
"""Maximum size and time of a refused body that is read and discarded, so that the client gets the answer, not a reset."""

MOST_STREAMS, MOST_STREAMS_OF_SENDER = 512, 64
"""Maximum numbers of streams of the page's results that are open at the same time, for all senders and for one. A browser
tab has one open stream while it waits for a reply; Gradio polls each stream for results twenty times per second."""


class RateLimit:
    """Rate limit for each sender: a bucket of requests that is full at first and is refilled evenly.

    Args:
        per_minute: Requests per minute, which is also the size of the bucket; 0 means no limit.
        clock: Function that returns seconds.
    """

    def __init__(self, per_minute: int, clock: Callable[[], float] = time.monotonic):
        self.per_minute, self._clock = per_minute, clock
        self._left: OrderedDict[str, tuple[float, float]] = OrderedDict()  # sender -> (requests left, when)

    def charge(self, sender: str, cost: float = 1) -> int:
        """Charge a request. Return 0 if it is allowed, else the seconds until it will be."""
        if not self.per_minute:
            return 0
        now, rate = self._clock(), self.per_minute / 60
        left, then = self._left.get(sender, (float(self.per_minute), now))
        left = min(self.per_minute, left + (now - then) * rate)
        allowed = left >= cost
        self._left[sender] = (left - cost if allowed else left, now)
        self._left.move_to_end(sender)
        if len(self._left) > MAX_SENDERS:
            self._left.popitem(last=False)
        return 0 if allowed else max(1, math.ceil((cost - left) / rate))


class ArrivingBytes:
    """Sum of the sizes of all request bodies that are arriving, or whose answer has not begun.

    Args:
        limit: Largest sum. Clients without credentials share one half of it.
    """

    def __init__(self, limit: int):
        self.limit, self.held = limit, 0

    def hold(self, count: int, trusted: bool) -> None:
        """Add bytes of a body.

        Raises:
            ApiError: 503, the sum would exceed the limit.
        """
        if count and self.held + count > (self.limit if trusted else self.limit // 2):
            raise ApiError(
                503, "Too many large requests arrive at the same time. Try again in a moment.", "server_error", "busy"
            )
        self.held += count

    def release(self, count: int) -> None:
        """Subtract bytes of a body that has been answered or was given up."""
        self.held -= count


class Turns:
    """Lets the bodies that arrive take turns: in each round of the event loop, one of them may receive its next part.

    Reading many bodies in the same round would hold up all other requests for the sum of their times. The body that began
    first comes first, so that few bodies are held half read.
    """

    def __init__(self) -> None:
        self._waiting: list[tuple[int, int, asyncio.Future[None]]] = []
        self._numbers = itertools.count()

    def number(self) -> int:
        """Return the number of a body that begins."""
        return next(self._numbers)

    async def wait(self, number: int) -> None:
        """Return when it is the turn of the body with this number."""
        loop = asyncio.get_running_loop()
        turn = loop.create_future()
        heapq.heappush(self._waiting, (number, next(self._numbers), turn))
        if len(self._waiting) == 1:
            loop.call_soon(self._next)
        await turn

    def _next(self) -> None:
        while self._waiting:
            *_, turn = heapq.heappop(self._waiting)
            if not turn.done():  # a body that was given up has left
                turn.set_result(None)
                break
        if self._waiting:
            asyncio.get_running_loop().call_soon(self._next)


class OpenStreams:
    """Number of streams of the page's results that are open, of each sender and of all."""

    def __init__(self) -> None:
        self._of_sender: dict[str, int] = {}
        self.total = 0

    def begin(self, sender: str) -> None:
        """Count a stream.

        Raises:
            ApiError: 503, the sender or all senders have too many.
        """
        count = self._of_sender.get(sender, 0)
        if count >= MOST_STREAMS_OF_SENDER or self.total >= MOST_STREAMS:
            raise ApiError(503, "Too many pages wait for replies. Try again in a moment.", "server_error", "busy")
        self._of_sender[sender] = count + 1
        self.total += 1

    def end(self, sender: str) -> None:
        """Stop counting a stream."""
        self.total -= 1
        self._of_sender[sender] -= 1
        if not self._of_sender[sender]:
            del self._of_sender[sender]


@dataclass
class Limits:
    """Settings and counters by which a server decides whether to answer a request.

    Attributes:
        options: Options of the server, with bounds on sizes and times.
        access: Check of credentials.
        metrics: Counters for /metrics.
        rate: Requests that each sender has left.
        origins: Names of this server and web sites that may use it.
        page: Functions and log-ins of the mounted page.
        pool: Threads for work on texts and large bodies.
        refused_lines: Throttle of the log lines about refused requests.
        streams: Streams of the page's results that are open.
        closing: Whether the server shuts down and refuses new requests.
    """

    options: ServeOptions
    access: Access
    metrics: Metrics
    rate: RateLimit
    origins: Origins = field(default_factory=Origins)
    page: PageRules = field(default_factory=PageRules)
    pool: WorkPool = field(default_factory=WorkPool)
    refused_lines: EqualLines = field(default_factory=EqualLines)
    streams: OpenStreams = field(default_factory=OpenStreams)
    closing: bool = False

    def __post_init__(self) -> None:
        self.arriving, self.turns = ArrivingBytes(self.options.arriving_bytes), Turns()

    def body_bytes(self, trusted: bool) -> int:
        """Return how large a request body may be; `trusted` means that the client has a key or is logged in."""
        return self.options.body_bytes if trusted else min(self.options.body_bytes, self.options.anonymous_body_bytes)


class BodyReader:
    """Reads the body of one request, or throws it away.

    Args:
        receive: Function of the ASGI server that returns the next part of the request.
        turns: Turns of all bodies that arrive.

    Attributes:
        complete: Whether the whole body has arrived, or the client has left.
    """

    def __init__(self, receive: Receive, turns: Turns):
        self._receive, self._turns, self.complete = receive, turns, False
        self._held, self._arriving = 0, ArrivingBytes(0)
        self._number: int | None = None

    async def _next(self) -> Message:
        if self._number is None:  # the first part has arrived with the headers
            self._number = self._turns.number()
        else:
            await self._turns.wait(self._number)
        message = await self._receive()
        self.complete = message["type"] == "http.disconnect" or not message.get("more_body")
        return message

    async def read(
        self, limit: int, stated: str, seconds: float, arriving: ArrivingBytes, trusted: bool
    ) -> bytes | None:
        """Return the whole body, or None if the client left. The body is counted in `arriving` until `release`.

        Args:
            limit: Largest body, in bytes. A body without a stated length is counted while it arrives.
            stated: Value of the Content-Length header, `0` if the request has none.
            seconds: Longest time in which the body may arrive.
            arriving: Bound on all bodies.
            trusted: Whether the client has credentials.

        Raises:
            ApiError: 413, the body is too large; 408, it is too slow; 503, all bodies together are too large.
        """
        too_large = ApiError(413, f"A request may have at most {limit} bytes.", code="body_too_large")
        if not stated.isdigit() or int(stated) > limit:
            raise too_large
        body, self._arriving = bytearray(), arriving
        try:
            async with asyncio.timeout(seconds):
                while not self.complete:
                    message = await self._next()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    if len(body) > limit:
                        raise too_large
                    counted = max(0, len(body) - UNCOUNTED_BODY_BYTES)
                    arriving.hold(counted - self._held, trusted)
                    self._held = counted
        except TimeoutError:
            raise ApiError(408, f"The request did not arrive whole within {seconds:g} s.", code="timeout") from None
        return bytes(body)

    def release(self) -> None:
        """Stop counting the body, because it is read, refused or given up."""
        self._arriving.release(self._held)
        self._held = 0

    async def drain(self) -> None:
        """Throw away what still arrives, up to `DRAIN_BYTES` and `DRAIN_SECONDS`."""
        drained = 0
        try:
            async with asyncio.timeout(DRAIN_SECONDS):
                while not self.complete and drained < DRAIN_BYTES:
                    drained += len((await self._next()).get("body", b""))
        except TimeoutError:
            pass
