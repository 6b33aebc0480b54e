"""Beam search whose replies end within the bound of the EOS floor, and diverse beam search, a control of experiments."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field, replace
from itertools import takewhile

import torch

from chatbot.decoding.candidates import Candidates, Draft, next_candidates
from chatbot.decoding.rules.eos_floor import StopReason
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary

MIN_LOG_PROB = -1e30
"""Lower log-probabilities count as probability 0."""


@dataclass(frozen=True)
class Hypothesis:
    """A reply in the beam.

    Attributes:
        token_ids: Tokens without EOS.
        score: Sum of log p under the rules and the floor, by which hypotheses are compared. It is not divided by the
            length, because then replies could exceed the bound.
        log_prob: See `Draft`.
        row: Row that the hypothesis continues, counted within the rows of its reply; unused once the hypothesis has
            ended.
        stop_reason: None while the hypothesis is unfinished.
    """

    token_ids: tuple[int, ...] = ()
    score: float = 0.0
    log_prob: float = 0.0
    row: int = 0
    stop_reason: StopReason | None = None


@dataclass(eq=False)
class BeamSearch:
    """A reply by beam search; a `chatbot.decoding.loop.Search` with one row per unfinished hypothesis.

    The search keeps the `settings.beams` best hypotheses, finished or not, and ends when the best one has ended: scores
    only fall, so no other hypothesis can overtake it. After t0 + delta tokens, EOS has at least half of the
    probability, so no other continuation is better than the end of the best unfinished hypothesis, and no reply is
    longer than t0 + delta + 1 tokens. Until the reply has ended, its draft is the common beginning of all hypotheses,
    so text that was shown is never taken back.

    Attributes:
        settings: Decoding settings.
        earlier: Token ids of the last replies in its conversation.
        speaker: Speaker id of the reply.
        draft: The reply so far.
        beam: The hypotheses, best first; empty once the reply has ended.
        emitted: Number of steps so far.
    """

    settings: ReplySettings
    earlier: Sequence[Sequence[int]] = ()
    speaker: int = 1
    draft: Draft = field(default_factory=Draft)
    beam: list[Hypothesis] = field(default_factory=lambda: [Hypothesis()])
    emitted: int = 0

    @property
    def rows(self) -> int:
        """Number of rows of the batch that belong to the reply."""
        return len(_unfinished(self.beam))

    @property
    def group(self) -> Hashable:
        """Replies with equal groups are advanced together."""
        return self.settings

    @staticmethod
    def advance(
        logits: torch.Tensor, searches: Sequence[BeamSearch], vocabulary: Vocabulary
    ) -> list[list[tuple[int, int]]]:
        """Extend the hypotheses of replies with equal settings; see `chatbot.decoding.loop.Search`."""
        settings = searches[0].settings
        unfinished = [(search, hypothesis) for search in searches for hypothesis in _unfinished(search.beam)]
        replies, earlier = [h.token_ids for _, h in unfinished], [search.earlier for search, _ in unfinished]
        candidates = next_candidates(logits, settings, vocabulary, replies, earlier)
        continuations = _Continuations(candidates, settings, vocabulary.end_id)
        first_row, steps = 0, []  # row in `logits` of the first hypothesis of a search
        for search in searches:
            count = search.rows
            at_limit = search.emitted >= settings.limit_tokens
            search.beam = _cut_off(search.beam) if at_limit else continuations.extend(search.beam, first_row)
            search.draft, search.emitted = _draft(search.beam), search.emitted + 1
            if search.draft.stop_reason is not None:
                search.beam = []
            steps.append([(hypothesis.row, hypothesis.token_ids[-1]) for hypothesis in _unfinished(search.beam)])
            first_row += count
        return steps


class _Continuations:
    """Best continuations of every unfinished hypothesis in one step, with and without the floor."""

    def __init__(self, candidates: Candidates, settings: ReplySettings, end_id: int):
        self.beams, self.end_id = settings.beams, end_id
        self.model_log_probs = candidates.model_log_probs
        unfloored = candidates.ruled.log_softmax(-1)
        floor = candidates.floor
        floored = unfloored if floor is None else floor.apply(unfloored, candidates.emitted, end_id)
        best = floored.topk(min(self.beams, floored.shape[-1]))
        self.values, self.tokens = best.values.tolist(), best.indices.tolist()
        self.unfloored_end = unfloored[:, end_id].tolist()
        self.unfloored_best = unfloored.topk(min(self.beams, floored.shape[-1])).values.tolist()

    def extend(self, beam: list[Hypothesis], first_row: int) -> list[Hypothesis]:
        """Return the best among the finished hypotheses and the continuations of the unfinished ones.

        Args:
            beam: Hypotheses of one reply.
            first_row: Row of its first unfinished hypothesis; the others follow.
        """
        pool = [hypothesis for hypothesis in beam if hypothesis.stop_reason is not None]
        for source, hypothesis in enumerate(_unfinished(beam)):
            row = first_row + source
            for value, token in zip(self.values[row], self.tokens[row], strict=True):
                score = hypothesis.score + value
                if value < MIN_LOG_PROB:
                    continue
                log_prob = hypothesis.log_prob + self.model_log_probs[row, token].item()
                if token == self.end_id:
                    reason: StopReason = "eos" if self._ends_without_floor(row) else "floor"
                    pool.append(Hypothesis(hypothesis.token_ids, score, log_prob, source, reason))
                else:
                    pool.append(Hypothesis((*hypothesis.token_ids, token), score, log_prob, source))
        return sorted(pool, key=lambda h: -h.score)[: self.beams]

    def _ends_without_floor(self, row: int) -> bool:
        """Whether EOS is among the best continuations even without the floor."""
        return self.unfloored_end[row] >= max(self.unfloored_best[row][-1], MIN_LOG_PROB)


def _unfinished(beam: list[Hypothesis]) -> list[Hypothesis]:
    return [hypothesis for hypothesis in beam if hypothesis.stop_reason is None]


def _cut_off(beam: list[Hypothesis]) -> list[Hypothesis]:
    """End the best hypothesis at the limit."""
    best = beam[0]
    return [best if best.stop_reason is not None else replace(best, stop_reason="limit")]


def _draft(beam: list[Hypothesis]) -> Draft:
    best = beam[0]
    if best.stop_reason is not None:
        return Draft(list(best.token_ids), best.log_prob, best.stop_reason)
    columns = zip(*(hypothesis.token_ids for hypothesis in beam), strict=False)
    return Draft([column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)])


@dataclass(eq=False)
class DiverseBeams:
    """Several replies by diverse beam search (Vijayakumar et al., arXiv 1610.02424) with one beam per group, G = B.

    The groups choose one after another at every step. A token loses `strength` nats for each group that has chosen it
    before at this step (Hamming diversity, eq. 4), so the first group is greedy. A `chatbot.decoding.loop.Search` that
    begins with one row.

    Attributes:
        settings: Decoding settings.
        drafts: The replies.
        strength: lambda, nats.
        earlier: Token ids of the last replies in the conversation.
        speaker: Speaker id of the replies.
    """

    settings: ReplySettings
    drafts: list[Draft]
    strength: float
    earlier: Sequence[Sequence[int]] = ()
    speaker: int = 1
    rows: int = 1

    @property
    def draft(self) -> Draft:
        """The first reply."""
        return self.drafts[0]

    @property
    def group(self) -> Hashable:
        """The search itself, because its groups depend on each other."""
        return self

    @staticmethod
    def advance(
        logits: torch.Tensor, searches: Sequence[DiverseBeams], vocabulary: Vocabulary
    ) -> list[list[tuple[int, int]]]:
        """Choose the next token of every group; see `chatbot.decoding.loop.Search`."""
        (search,) = searches
        unfinished = [draft for draft in search.drafts if draft.stop_reason is None]
        sources = list(range(len(unfinished))) if len(logits) == len(unfinished) else [0] * len(unfinished)
        replies = [draft.token_ids for draft in unfinished]
        earlier = [search.earlier] * len(unfinished)
        candidates = next_candidates(logits[sources], search.settings, vocabulary, replies, earlier)
        scores, floor = candidates.ruled.log_softmax(-1), candidates.floor
        if floor is not None:
            scores = floor.apply(scores, candidates.emitted, vocabulary.end_id)
        chosen: Counter[int] = Counter()
        steps = []
        for row, draft in enumerate(unfinished):
            for token, count in chosen.items():
                scores[row, token] -= search.strength * count
            token = int(scores[row].argmax())
            chosen[token] += 1
            if len(draft.token_ids) >= search.settings.limit_tokens:
                draft.stop_reason = "limit"
            elif token == vocabulary.end_id:
                draft.stop_reason = "eos"
            else:
                draft.token_ids.append(token)
                steps.append((sources[row], token))
        search.rows = len(steps)
        return [steps]
