"""The decode loop, which advances replies step by step: sampled, greedy, given, or by beam search.

A step reads one token per row of a batch and then chooses the next tokens. `Decoding` performs a step; `run` repeats it
for replies that begin together, and `chatbot.chat.batches.SharedBatch` for conversations that come and go.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any, ClassVar, Protocol

import torch

from chatbot.decoding.batch import DialogueBatch, start_batch
from chatbot.decoding.beam import BeamSearch
from chatbot.decoding.candidates import Candidates, Draft, GenerationError, next_candidates
from chatbot.decoding.sampler import SampledReply
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.model.protocol import DialogueModel
from chatbot.text.dialogue import Prompt


class Search(Protocol):
    """A reply that is being decoded in one or more rows of a batch."""

    @property
    def draft(self) -> Draft:
        """The reply so far."""

    @property
    def speaker(self) -> int:
        """Speaker id of the reply."""

    @property
    def rows(self) -> int:
        """Number of rows of the batch that the reply occupies now."""

    @property
    def group(self) -> Hashable:
        """Searches of one class with equal groups are advanced together."""

    @staticmethod
    def advance(logits: torch.Tensor, searches: Sequence[Any], vocabulary: Vocabulary) -> list[list[tuple[int, int]]]:
        """Choose how searches of one class and group continue.

        Args:
            logits: Logits `[B, V]` of the next token of each row; the rows of all searches, in order.
            searches: The searches.
            vocabulary: Properties of the tokens.

        Returns:
            For each search, its rows in the next step. Each row is a pair: the present row of the search that it
            continues, and the token that it reads. An empty list ends the search.

        Raises:
            GenerationError: The logits are NaN or +inf, or leave no token to choose; no search has advanced.
        """


class Decoding:
    """Searches over the rows of one batch. Call `choose` and `read` in turn until no search is left.

    Args:
        batch: States of the dialogues after the prompts: the rows of all searches, in order; decoding changes them.
        logits: Logits `[B, V]` of the first tokens.
        searches: The searches.
        vocabulary: Properties of the tokens.

    Attributes:
        tokens: Token that each row reads next.
        failed: Searches that ended in the last `choose` because their logits cannot be decoded.
    """

    def __init__(self, batch: DialogueBatch, logits: torch.Tensor, searches: Sequence[Search], vocabulary: Vocabulary):
        self.batch, self.logits, self.vocabulary = batch, logits, vocabulary
        self.searches = list(searches)
        self._widths = [search.rows for search in searches]
        self.tokens: list[int] = []
        self.failed: dict[Search, GenerationError] = {}

    def add(self, searches: Sequence[Search], logits: torch.Tensor) -> None:
        """Add searches whose rows are already the last of the batch; `logits` `[rows, V]`: for their first tokens."""
        self.searches += searches
        self._widths += [search.rows for search in searches]
        self.logits = torch.cat([self.logits, logits])

    def first_rows(self) -> Iterator[tuple[Search, int]]:
        """Yield every search with its first row."""
        yield from zip(self.searches, accumulate(self._widths, initial=0), strict=False)

    def choose(self, successor: Callable[[Search], tuple[Search, int] | None] = lambda search: None) -> None:
        """Choose how every search continues, and remove the rows and searches that have ended.

        Args:
            successor: Called with a search that has ended. Returns None, or another search that takes over its first
                row and the token that the new search reads next.
        """
        self.failed = {}
        steps = _advance(self.logits, self.searches, self._widths, self.vocabulary, self.failed)
        before, rows, first = list(zip(self.searches, self._widths, strict=True)), [], 0
        self.searches, self._widths, self.tokens = [], [], []
        for (search, width), step in zip(before, steps, strict=True):
            if not step and search not in self.failed and (following := successor(search)) is not None:
                search, step = following[0], [(0, following[1])]
            if step:
                self.searches.append(search)
                self._widths.append(len(step))
                self.tokens += [token for _, token in step]
                rows += [first + row for row, _ in step]
            first += width
        self._select(rows, first)

    def remove(self, removed: Callable[[Search], bool]) -> None:
        """Remove searches between `choose` and `read`."""
        starts = [end - width for end, width in zip(accumulate(self._widths), self._widths, strict=True)]
        remaining = [
            (search, range(start, start + width))
            for search, start, width in zip(self.searches, starts, self._widths, strict=True)
            if not removed(search)
        ]
        rows = [row for _, part in remaining for row in part]
        self.searches, self._widths = [search for search, _ in remaining], [len(part) for _, part in remaining]
        count, self.tokens = len(self.tokens), [self.tokens[row] for row in rows]
        self._select(rows, count)

    def _select(self, rows: list[int], count: int) -> None:
        """Keep these of the `count` rows of the batch."""
        self.logits = self.logits[:0]  # they have been used; `add` must not append to them
        if rows != list(range(count)):
            self.batch.select(torch.tensor(rows, dtype=torch.int64, device=self.logits.device))

    def read(self) -> None:
        """Read the chosen tokens."""
        pairs = zip(self.searches, self._widths, strict=True)
        speakers = [search.speaker for search, width in pairs for _ in range(width)]
        ids, roles = torch.tensor([self.tokens, speakers], dtype=torch.int64, device=self.logits.device)
        self.logits = self.batch(ids, roles)


def _advance(
    logits: torch.Tensor,
    searches: Sequence[Search],
    widths: Sequence[int],
    vocabulary: Vocabulary,
    failed: dict[Search, GenerationError],
) -> list[list[tuple[int, int]]]:
    """Advance searches, those of one class and group together; failures are added to `failed`."""
    groups: dict[tuple[type, Hashable], list[int]] = {}
    for index, search in enumerate(searches):
        groups.setdefault((type(search), search.group), []).append(index)
    pending = list(groups.values())
    ends = list(accumulate(widths))
    steps: list[list[tuple[int, int]]] = [[] for _ in searches]
    while pending:
        indices = pending.pop()
        members, part = [searches[index] for index in indices], logits
        if len(members) < len(searches):
            part = logits[[row for index in indices for row in range(ends[index] - widths[index], ends[index])]]
        try:
            group_steps = members[0].advance(part, members, vocabulary)
        except GenerationError as error:  # no search has advanced yet: find those with bad logits
            if len(members) == 1:
                failed[members[0]] = error
            else:
                pending += [[index] for index in indices]
            continue
        for index, step in zip(indices, group_steps, strict=True):
            steps[index] = step
    return steps


@torch.inference_mode()
def run(
    batch: DialogueBatch, logits: torch.Tensor, searches: Sequence[Search], vocabulary: Vocabulary
) -> Iterator[list[Draft]]:
    """Decode searches that begin together, and yield all drafts after every step; arguments as for `Decoding`."""
    decoding = Decoding(batch, logits, searches, vocabulary)
    while True:
        decoding.choose()
        for error in decoding.failed.values():
            raise error
        yield [search.draft for search in searches]
        if not decoding.searches:
            return
        decoding.read()


@dataclass(eq=False)
class ForcedReply:
    """A reply whose tokens are given, decoded to see the candidates of every step; a `Search` with one row.

    Attributes:
        tokens: The tokens; the model predicts all of them, and reads all but the last.
        kinds: Settings under which the candidates of every step are computed.
        watch: Called at every step for each of `kinds`, with its index, the candidates and the replies that they
            belong to, one per row. Replies with the same `kinds` and `watch` are handled together.
        earlier: Token ids of the last replies in its conversation.
        speaker: Speaker id of the reply.
        position: Index of the token that is predicted next.
        draft: Not used: the reply is known.
    """

    tokens: Sequence[int]
    kinds: tuple[ReplySettings, ...]
    watch: Callable[[int, Candidates, Sequence[ForcedReply]], None]
    earlier: Sequence[Sequence[int]] = ()
    speaker: int = 1
    position: int = 0
    draft: Draft = field(default_factory=Draft)
    rows: ClassVar[int] = 1

    @property
    def group(self) -> Hashable:
        """Replies with equal groups are advanced together."""
        return self.kinds, self.watch

    @staticmethod
    def advance(
        logits: torch.Tensor, searches: Sequence[ForcedReply], vocabulary: Vocabulary
    ) -> list[list[tuple[int, int]]]:
        """Compute the candidates of one step and go on to the next token."""
        replies, earlier = [reply.tokens[: reply.position] for reply in searches], [r.earlier for r in searches]
        for index, kind in enumerate(searches[0].kinds):
            searches[0].watch(index, next_candidates(logits, kind, vocabulary, replies, earlier), searches)
        steps: list[list[tuple[int, int]]] = []
        for reply in searches:
            is_last = reply.position == len(reply.tokens) - 1
            steps.append([] if is_last else [(0, reply.tokens[reply.position])])
            reply.position += 1
        return steps


def start_search(settings: ReplySettings, seed: int, earlier: Sequence[Sequence[int]] = (), speaker: int = 1) -> Search:
    """Return a new reply with these settings; beam search needs no seed."""
    if settings.method == "beam":
        return BeamSearch(settings, earlier, speaker)
    return SampledReply(settings, random.Random(seed), earlier, speaker)


def decode(
    batch: DialogueBatch,
    logits: torch.Tensor,
    reply_speakers: Sequence[int],
    settings: ReplySettings,
    vocabulary: Vocabulary,
    seeds: Sequence[int],
    earlier: Sequence[Sequence[Sequence[int]]] | None = None,
) -> Iterator[list[Draft]]:
    """Decode one reply per row and yield all drafts after every step; in the last yield all have a stop reason.

    Every row has separate random numbers and leaves the batch when it ends, so a reply depends on the other rows only
    through the rounding of batched matrix products (about 2e-6 on logits; none in the compiled library).

    Args:
        batch: States of the dialogues after the prompts; decoding changes them.
        logits: Logits `[B, V]` of the first reply tokens.
        reply_speakers: Speaker id of each reply.
        settings: Settings of all rows.
        vocabulary: Properties of the tokens.
        seeds: One seed per row.
        earlier: Token ids of the last replies in each row's conversation, for the rules against repetition.

    Raises:
        GenerationError: The model's logits are NaN or +inf, or leave no token to choose.
    """
    last_replies = [()] * len(seeds) if earlier is None else earlier
    rows = zip(reply_speakers, seeds, last_replies, strict=True)
    searches = [start_search(settings, seed, texts, speaker) for speaker, seed, texts in rows]
    yield from run(batch, logits, searches, vocabulary)


def repeat_rows(batch: DialogueBatch, logits: torch.Tensor, counts: Sequence[int]) -> torch.Tensor:
    """Repeat row i of a batch `counts[i]` times, once for each candidate.

    Returns:
        The logits of all rows, `[sum of counts, V]`.
    """
    if all(count == 1 for count in counts):
        return logits
    rows = torch.arange(len(logits)).repeat_interleave(torch.tensor(counts)).to(logits.device)
    batch.select(rows)
    return logits[rows]


@torch.inference_mode()
def prefill(model: DialogueModel, prompts: Sequence[Prompt]) -> tuple[DialogueBatch, torch.Tensor]:
    """Read several prompts together.

    Returns:
        The batch of dialogues after the prompts, and the logits `[B, V]` of the first reply tokens.
    """
    batch = start_batch(model, len(prompts))
    return batch, batch.read([prompt.input_ids for prompt in prompts], [prompt.speaker_ids for prompt in prompts])
