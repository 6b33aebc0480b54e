"""Jobs of the worker: a reply in progress, a prompt that is read ahead of time, a finished reply that is read again."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field, replace
from typing import Any

from chatbot.chat.bot import Chatbot, Request
from chatbot.chat.request import Reply, next_beginning, searches_of
from chatbot.chat.trace import TracedStep, forced_reply, traced_step
from chatbot.decoding.beam import BeamSearch
from chatbot.decoding.candidates import Candidates, Draft
from chatbot.decoding.loop import Search
from chatbot.text.dialogue import Prompt


@dataclass(eq=False)
class Job:
    """A reply in progress.

    Attributes:
        request: The request.
        deliver: Called in the worker's thread with the reply so far after every step, then with None at the end, or
            with the exception that ended it.
        cancelled: Whether the caller has cancelled it.
        alone: Whether it is decoded in a separate batch, because it may have caused a failure.
        delivered: Number of steps after which the reply was delivered.
        searches: Candidates of the reply; empty until the prompt has been read.
        ahead: Result of `next_beginning` for the finished reply.
        sender: Sender of the request; see `Worker`.
    """

    request: Request
    deliver: Callable[[Any], None]  # Reply, TracedStep, BaseException or None
    cancelled: bool = False
    alone: bool = False
    delivered: int = 0
    searches: list[Search] = field(default_factory=list)
    ahead: Prompt | None = None
    sender: Hashable = None

    @property
    def most_rows(self) -> int:
        """Maximum number of rows that the job takes in a batch."""
        settings = self.request.settings
        return settings.beams if settings.method == "beam" else self.request.candidates

    def cancel(self) -> None:
        """Stop the reply; at most the step in progress is still delivered."""
        self.cancelled = True

    def begin(self, bot: Chatbot) -> list[Search]:
        """Return new searches for the candidates of the reply."""
        self.searches = searches_of(self.request)
        return self.searches

    def show(self, bot: Chatbot) -> None:
        """Deliver the reply so far, and None after the last step; see `Chatbot.best_draft`."""
        candidates = [search.draft for search in self.searches]
        draft = bot.best_draft(self.request, candidates)
        has_ended = all(candidate.stop_reason is not None for candidate in candidates)
        steps = max(len(candidate.token_ids) for candidate in candidates) + has_ended
        if isinstance(self.searches[0], BeamSearch):  # its draft does not grow at every step
            steps = self.searches[0].emitted
        if steps > self.delivered:  # a job that started again does not deliver a step twice
            self.delivered = steps
            reply = bot.show(self.request, draft)
            self.hand_over(reply)
            if has_ended:
                self.hand_over(None)
                self.ahead = next_beginning(bot, self.request, reply)

    def hand_over(self, item: Reply | TracedStep | BaseException | None) -> None:
        """Deliver an item unless the job was cancelled; an exception of the receiver cancels the job."""
        try:
            if not self.cancelled:
                self.deliver(item)
        except Exception:
            self.cancel()


class ReadAhead(Job):
    """Job that reads the known beginning of a conversation's next prompt, to cache the state after it.

    Args:
        request: Request whose reply has ended.
        beginning: The beginning.
    """

    def __init__(self, request: Request, beginning: Prompt):
        # the state before the last piece of a prompt is cached, so an empty last piece is added
        pieces = (*beginning.pieces, ((), beginning.reply_speaker))
        super().__init__(replace(request, prompt=replace(beginning, pieces=pieces)), lambda item: None)

    @property
    def most_rows(self) -> int:
        return 1

    def begin(self, bot: Chatbot) -> list[Search]:
        return []


@dataclass(eq=False)
class TraceJob(Job):
    """Job that reads a finished reply again, to deliver a `TracedStep` for each token.

    Attributes:
        reply: The reply.
        watched: Candidates of the step that has not been delivered yet.
    """

    reply: Draft = field(default_factory=Draft)
    watched: list[Candidates] = field(default_factory=list)

    @property
    def most_rows(self) -> int:
        return 1

    def begin(self, bot: Chatbot) -> list[Search]:
        self.watched.clear()
        self.searches = [forced_reply(bot, self.request, self.reply, self.watched.append)]
        return self.searches

    def show(self, bot: Chatbot) -> None:
        position = int(self.watched[-1].emitted[0])
        step = traced_step(bot, self.request, self.reply, position, self.watched.pop())
        if position >= self.delivered:
            self.delivered = position + 1
            self.hand_over(step)
            if position == len(self.reply.token_ids):
                self.hand_over(None)
