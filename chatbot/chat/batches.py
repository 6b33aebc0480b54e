"""Batch of the worker: the replies of many conversations, which join and leave at any step."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch

from chatbot.chat.bot import Chatbot
from chatbot.chat.jobs import EncodingJob, GivenReply, Job
from chatbot.chat.snapshots import Pieces
from chatbot.chat.variants import latent_of, z_of
from chatbot.decoding.batch import start_slots
from chatbot.decoding.beam import BeamSearch
from chatbot.decoding.candidates import Draft
from chatbot.decoding.loop import Decoding, Search
from chatbot.decoding.sampler import SampledReply
from chatbot.decoding.slots import Part, SlotRows
from chatbot.decoding.vocabulary import Vocabulary

PROMPT_TOKENS = 128
"""Maximum number of prompt tokens that are read in one step."""


@dataclass(eq=False)
class Closing:
    """`Search` in which the model reads the end of turn of a finished reply, so that the state can be cached.

    Attributes:
        pieces: Pieces of the prompt and the reply, the end of turn included.
        unread: Tokens of the end of turn that are still to be read, in order.
        speaker: Speaker of the reply.
    """

    pieces: Pieces
    unread: list[int]
    speaker: int
    draft: Draft = field(default_factory=Draft)
    rows: ClassVar[int] = 1
    group: ClassVar[Hashable] = None

    @staticmethod
    def advance(
        logits: torch.Tensor, searches: Sequence[Closing], vocabulary: Vocabulary
    ) -> list[list[tuple[int, int]]]:
        return [[(0, closing.unread.pop(0))] if closing.unread else [] for closing in searches]


class Entering:
    """A job whose prompt the model is still reading.

    Args:
        job: The job.
        slot: Slot of its state.
        done: Number of prompt pieces that the state already contains.
        logits: Logits `[1, V]` after these pieces; None before the first piece.

    Attributes:
        read: Number of tokens that were read after these pieces.
        before_end: State before the last token of the prompt. For a reply with a latent variable z, this
            token is read twice: without z, to get the hidden state that the prior of z depends on, and then with z.
        needs_latent: Whether the last token must still be read with z.
    """

    def __init__(self, job: Job, slot: int, done: int, logits: torch.Tensor | None):
        self.job, self.slot, self.logits, self.read = job, slot, logits, 0
        self.before_end: Any = None
        self.needs_latent = job.request.has_z
        pieces = job.request.prompt.pieces
        self.ids = [token for ids, _ in pieces[done:] for token in ids]
        self.speakers = [speaker for ids, speaker in pieces[done:] for _ in ids]
        last = len(pieces[-1][0]) if done < len(pieces) else 0
        self.message_start = len(self.ids) - last  # the state before the last turn is cached

    @property
    def unread(self) -> int:
        """Number of tokens that are still to be read."""
        return len(self.ids) - self.read

    def part(self, most: int) -> Part:
        """Return the next tokens to read, at most `most`; a part does not cross the beginning of the last turn."""
        end = min(len(self.ids), self.read + most)
        if self.needs_latent and self.read < len(self.ids) - 1:
            end = min(end, len(self.ids) - 1)
        if self.read < self.message_start:
            end = min(end, self.message_start)
        return Part(self.slot, self.ids[self.read : end], self.speakers[self.read : end])


class SharedBatch:
    """Batch of replies whose states have slots in one pool; jobs enter and leave at any step.

    Each step is one pass over the last token of every running reply, over parts of the prompts of new jobs, and over
    the ends of turns of finished replies. At most `prompt_tokens` prompt tokens are read per step, so that a long
    history hardly delays the other replies. Half of this number is for the job that has waited longest, the rest for
    the jobs with the fewest unread tokens. States from which the person's next message can continue are cached.

    A job whose logits cannot be decoded ends with an error; the other jobs continue.

    Args:
        bot: Bot whose model decodes.
        prompt_tokens: Maximum number of prompt tokens that are read in one step.
    """

    def __init__(self, bot: Chatbot, prompt_tokens: int = PROMPT_TOKENS):
        self.bot, self.prompt_tokens = bot, prompt_tokens
        self.pool = start_slots(bot.model)
        self._rows = SlotRows(self.pool)
        empty = torch.empty(0, bot.model.config.vocab_size, device=bot.model.device)
        self._decoding = Decoding(self._rows, empty, [], bot.vocabulary)
        self._owners: dict[Search, Job] = {}
        self._entering: list[Entering] = []

    def __len__(self) -> int:
        """Number of rows in the batch, including the rows that new jobs and beam searches may still take."""
        running = [
            search.settings.beams if isinstance(search, BeamSearch) else search.rows
            for search in self._decoding.searches
        ]
        return sum(running) + sum(entry.job.most_rows for entry in self._entering)

    @property
    def jobs(self) -> list[Job]:
        """Jobs in the batch."""
        running = (self._owners[search] for search in self._decoding.searches if search in self._owners)
        return list(dict.fromkeys([*running, *(entry.job for entry in self._entering)]))

    def enter(self, job: Job) -> None:
        """Give a job a slot that starts from the cached state of the longest prefix of its prompt."""
        pieces = job.request.prompt.pieces
        known = pieces[:-1] if job.needs_hidden else pieces  # a cached state has no hidden state
        done, batch, logits = self.bot.snapshots.longest(known)
        if not self.pool.accepts(batch):
            done, batch, logits = 0, None, None
        self._entering.append(Entering(job, self.pool.enter(batch), done, logits))

    def drop_cancelled(self) -> None:
        """Remove the cancelled jobs."""
        if not any(job.cancelled for job in self.jobs):
            return
        self._decoding.remove(lambda search: search in self._owners and self._owners[search].cancelled)
        for entry in self._entering:
            if entry.job.cancelled:
                self.pool.leave(entry.slot)
        self._entering = [entry for entry in self._entering if not entry.job.cancelled]
        self._forget_ended()

    def step(self) -> list[Job]:
        """Run the model, add the jobs whose prompts are complete, choose a token per row; return the advanced jobs."""
        entries = self._next_parts()
        self._rows.parts = [part for _, part in entries]
        if self._decoding.tokens or entries:
            self._decoding.read()
        for entry, part in entries:
            self._advance(entry, part)
        self._cache_closed()
        for search, row in self._decoding.first_rows():
            if isinstance(search, GivenReply):
                search.hidden.append(self.pool.hidden_of(self._rows.slots[row]))
        for entry in self._entering:
            if not entry.unread and entry.needs_latent:
                self._give_latent(entry)
            elif not entry.unread:
                self._begin(entry)
        self._entering = [entry for entry in self._entering if entry.unread]
        if not self._decoding.searches:
            return []
        advanced = [self._owners[search] for search in self._decoding.searches if search in self._owners]
        self._decoding.choose(self._closing)
        for search, error in self._decoding.failed.items():
            if (failed := self._owners.get(search)) is not None:  # a `Closing` has no job: its state is not cached
                failed.hand_over(error)
                failed.cancel()
        self._forget_ended()
        return [job for job in dict.fromkeys(advanced) if not job.cancelled]

    def _next_parts(self) -> list[tuple[Entering, Part]]:
        """Return the parts of prompts to read in this step."""
        waiting = [entry for entry in self._entering if entry.unread]
        if not waiting:
            return []
        most = {waiting[0]: min(waiting[0].unread, self.prompt_tokens // 2)}
        rest = self.prompt_tokens - most[waiting[0]]
        for entry in sorted(waiting, key=lambda entry: entry.unread):
            more = min(entry.unread - most.get(entry, 0), rest)
            most[entry], rest = most.get(entry, 0) + more, rest - more
        return [(entry, entry.part(most[entry])) for entry in waiting if most[entry]]

    def _advance(self, entry: Entering, part: Part) -> None:
        """Record that a part was read, and cache the state if a later message can continue from it."""
        entry.read, entry.logits = entry.read + len(part.ids), part.logits
        if entry.read == entry.message_start and part.logits is not None:
            pieces = entry.job.request.prompt.pieces[:-1]
            self.bot.snapshots.add(pieces, self.pool.copy_of(entry.slot), part.logits)
        if entry.needs_latent and entry.unread == 1:
            entry.before_end = self.pool.copy_of(entry.slot)

    def _give_latent(self, entry: Entering) -> None:
        """Restore the state before the last token of the prompt and set z; the next step reads that token with z."""
        latent = latent_of(self.bot)
        assert latent is not None
        z = z_of(latent, entry.job.request, self.pool.hidden_of(entry.slot))
        self.pool.leave(entry.slot)
        entry.slot = self.pool.enter(entry.before_end)
        self.pool.set_latent(entry.slot, z)
        entry.read, entry.needs_latent, entry.before_end = entry.read - 1, False, None

    def _cache_closed(self) -> None:
        """Cache the states of replies whose end of turn was read."""
        for search, row in self._decoding.first_rows():
            if isinstance(search, Closing) and not search.unread:
                logits = self._decoding.logits[row : row + 1].clone()
                self.bot.snapshots.add(search.pieces, self.pool.copy_of(self._rows.slots[row]), logits)

    def _begin(self, entry: Entering) -> None:
        """Add the rows of a job whose prompt has been read; the first row keeps the slot of the job."""
        if isinstance(entry.job, EncodingJob):
            entry.job.context = self.pool.hidden_of(entry.slot)
        searches = entry.job.begin(self.bot)
        if not searches:
            self.pool.leave(entry.slot)
            return
        self._owners.update(dict.fromkeys(searches, entry.job))
        state = self.pool.copy_of(entry.slot) if len(searches) > 1 else None
        self._rows.slots += [entry.slot, *(self.pool.enter(state) for _ in searches[1:])]
        assert entry.logits is not None  # a prompt has at least one token
        self._decoding.add(searches, entry.logits.expand(len(searches), -1))

    def _closing(self, search: Search) -> tuple[Closing, int] | None:
        """Return the `Closing` of a finished reply and the first token of its end of turn; None if not needed."""
        job = self._owners.get(search)
        if job is None or job.cancelled or not isinstance(search, SampledReply) or len(job.searches) > 1:
            return None
        request = job.request
        if request.has_z or request.variation or request.settings.thinks:  # the state has more than the turn's text
            return None
        prompt, end = request.prompt, self.bot.layout.end_of_reply
        reply = ((*search.draft.token_ids, *end), prompt.reply_speaker)
        return Closing((*prompt.pieces, reply), list(end[1:]), prompt.reply_speaker), end[0]

    def _forget_ended(self) -> None:
        running = set(self._decoding.searches)
        self._owners = {search: job for search, job in self._owners.items() if search in running}
