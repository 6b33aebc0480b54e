"""Jobs of the worker: a reply in progress, a prompt that is read ahead of time, finished replies that are read again."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar

import torch

from chatbot.chat.bot import Chatbot, Request
from chatbot.chat.request import Reply, next_beginning, searches_of
from chatbot.chat.trace import TracedStep, forced_reply, traced_step
from chatbot.chat.variants import latent_of
from chatbot.decoding.beam import BeamSearch
from chatbot.decoding.candidates import Candidates, Draft
from chatbot.decoding.loop import Search
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.model.latent.gaussian import Normal
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
    deliver: Callable[[Any], None]  # Reply, TracedStep, Normal, BaseException or None
    cancelled: bool = False
    alone: bool = False
    delivered: int = 0
    searches: list[Search] = field(default_factory=list)
    ahead: Prompt | None = None
    sender: Hashable = None

    @property
    def needs_hidden(self) -> bool:
        """Whether the hidden state at the end of the message is needed, so that it must be read even if it is cached."""
        return self.request.has_z

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

    def hand_over(self, item: Reply | TracedStep | Normal | BaseException | None) -> None:
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


@dataclass(eq=False)
class GivenReply:
    """`Search` that reads a given reply, to collect the hidden states `[D]` at its tokens.

    Attributes:
        unread: Tokens that are still to be read, in order; the last one ends the turn.
        speaker: Speaker of the reply.
        hidden: Hidden states at the tokens that were read.
    """

    unread: list[int]
    speaker: int
    hidden: list[torch.Tensor] = field(default_factory=list)
    draft: Draft = field(default_factory=Draft)
    rows: ClassVar[int] = 1
    group: ClassVar[Hashable] = None

    @staticmethod
    def advance(
        logits: torch.Tensor, searches: Sequence[GivenReply], vocabulary: Vocabulary
    ) -> list[list[tuple[int, int]]]:
        return [[(0, reply.unread.pop(0))] if reply.unread else [] for reply in searches]


@dataclass(eq=False)
class EncodingJob(Job):
    """Job that reads replies to one history without z, to deliver q(z|c,r) of each in whitened coordinates.

    Attributes:
        replies: Token ids of the replies, without the end of turn.
        context: Hidden state `[D]` at the end of the message.
    """

    replies: Sequence[Sequence[int]] = ()
    context: torch.Tensor | None = None

    @property
    def needs_hidden(self) -> bool:
        return True

    @property
    def most_rows(self) -> int:
        return len(self.replies)

    def begin(self, bot: Chatbot) -> list[Search]:
        end, speaker = bot.layout.end_of_turn_id, self.request.prompt.reply_speaker
        self.searches = [GivenReply([*ids, end], speaker) for ids in self.replies]
        return self.searches

    def show(self, bot: Chatbot) -> None:
        """Deliver the distributions `[R, Z]` once all replies have been read."""
        states = [search.hidden for search in self.searches if isinstance(search, GivenReply)]
        if any(len(hidden) <= len(ids) for hidden, ids in zip(states, self.replies, strict=True)):
            return
        latent = latent_of(bot)
        assert latent is not None
        assert self.context is not None
        means = [torch.stack(hidden[:-1]).mean(0) if hidden[:-1] else torch.zeros_like(hidden[0]) for hidden in states]
        ends, dtype = [hidden[-1] for hidden in states], latent.bag.weight.dtype
        q = latent.recognition(torch.stack(means).to(dtype), torch.stack(ends).to(dtype))
        self.hand_over(q.whitened_by(latent.prior(self.context[None].to(dtype))))
        self.hand_over(None)
