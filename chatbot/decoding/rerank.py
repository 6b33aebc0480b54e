"""Ranking of candidate replies: likely, related to the message, and different from the last replies.

    score(r) = (log p(r | c) - w_p log p(r)) / sqrt(tokens of r)  +  w_b log p(c | r) / tokens of c
               - w_s max over s of likeness(r, s)

Dividing by a power of the length is the length normalization of Wu et al. (arXiv 1609.08144, eq. 14). With exponent 1
long replies of common words win; on 320 contexts with replies rated by blind judges, exponents from 0 to .5 chose
replies that were .05 of 2 points better (95 %: .02 to .08), and 1/2 keeps most of the length.

log p(r | c) comes from the model itself, and log p(r) from the same model without a history: with w_p = 1, their
difference is the pointwise mutual information of context and reply (Li et al., arXiv 1510.03055, eq. 9). log p(c | r)
comes from a model trained on reversed dialogues (`xianliao-train --direction backward`): maximum mutual information as
DialoGPT uses it (arXiv 1911.00536, section 2.3). Both terms penalise replies that fit every message. s stands for each
of the bot's last replies and for the message. Likeness is 1 minus the lower bound of the WRD
(`chatbot.similarity.distance.relaxed_distance`) over the checkpoint's token vectors; if these are missing, it is the
share of common tokens. Candidates that are nearly equal to a likelier one are removed first.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatbot.decoding.candidates import Draft
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError
from chatbot.model.protocol import DialogueModel
from chatbot.model.scoring import score_turns
from chatbot.similarity.distance import relaxed_distance
from chatbot.similarity.token_vectors import TokenVectors
from chatbot.text.layouts import Layout

SAME_LIKENESS = 0.95
"""Candidates that are at least this alike count as one."""

CONTEXT_TURNS = 2
"""Number of turns before the reply that the backward model scores."""


class RankingError(XianliaoError):
    """The checkpoint lacks parts that the ranking needs."""


@dataclass(frozen=True)
class Answered:
    """History that candidates are compared with, as token ids.

    Attributes:
        turns: The history, oldest turn first; the last is the message.
        earlier_replies: The bot's last replies.
    """

    turns: Sequence[Sequence[int]]
    earlier_replies: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Ranker:
    """Chooses the best of several candidate replies.

    Attributes:
        layout: Layout of the forward and the backward model.
        vectors: Token vectors, or None.
        backward: A model trained on reversed dialogues with the same tokenizer, or None.
        forward: The model that generated the candidates, or None.
    """

    layout: Layout
    vectors: TokenVectors | None = None
    backward: DialogueModel | None = None
    forward: DialogueModel | None = None

    def best(
        self, answered: Sequence[Answered], drafts: Sequence[Sequence[Draft]], settings: ReplySettings
    ) -> list[int]:
        """Return, for each history, the index of its best candidate; the first among equals.

        Args:
            answered: The histories.
            drafts: Finished candidates of each history.
            settings: Weights of the score.

        Raises:
            RankingError: The weights need a backward model that the checkpoint does not have.
        """
        if not (settings.rank_prior or settings.rank_backward or settings.rank_similarity):
            # The likeliest is never removed for being nearly equal to another, so likeness does not matter.
            return [int(np.argmax([likelihood(draft) for draft in candidates])) for candidates in drafts]
        scored = self.scored(answered, drafts, settings)
        return [indices[int(np.argmax(scores))] for indices, scores in scored]

    def scored(
        self, answered: Sequence[Answered], drafts: Sequence[Sequence[Draft]], settings: ReplySettings
    ) -> list[tuple[list[int], list[float]]]:
        """Return, for each history, the indices of its different candidates and their scores; see `best`."""
        different = [self.different(candidates) for candidates in drafts]
        scores = [
            [self._score(history, candidates[index], settings) for index in indices]
            for history, candidates, indices in zip(answered, drafts, different, strict=True)
        ]
        remaining = [[drafts[i][index] for index in indices] for i, indices in enumerate(different)]
        if settings.rank_prior:
            for row, values in zip(scores, self._log_priors(answered, remaining), strict=True):
                row[:] = [score - settings.rank_prior * value for score, value in zip(row, values, strict=True)]
        if settings.rank_backward:
            for row, values in zip(scores, self._backward_log_probs(answered, remaining), strict=True):
                row[:] = [score + settings.rank_backward * value for score, value in zip(row, values, strict=True)]
        return list(zip(different, scores, strict=True))

    def different(self, drafts: Sequence[Draft]) -> list[int]:
        """Return, in order, the indices of the candidates without those that nearly equal a likelier one."""
        order = sorted(range(len(drafts)), key=lambda index: -likelihood(drafts[index]))
        chosen: list[int] = []
        for index in order:
            ids = drafts[index].token_ids
            if all(self.likeness(ids, drafts[other].token_ids) < SAME_LIKENESS for other in chosen):
                chosen.append(index)
        return sorted(chosen)

    def likeness(self, a: Sequence[int], b: Sequence[int]) -> float:
        """Return how alike two texts are, at most 1."""
        if list(a) == list(b):
            return 1.0
        if self.vectors is not None:
            bag_a, bag_b = self.vectors.bag(a, "wrd"), self.vectors.bag(b, "wrd")
            if len(bag_a) and len(bag_b):
                return 1 - relaxed_distance(bag_a, bag_b, "wrd")
        return (Counter(a) & Counter(b)).total() / max(len(a), len(b), 1)

    def _score(self, history: Answered, draft: Draft, settings: ReplySettings) -> float:
        score = likelihood(draft)
        compared = [*history.earlier_replies, *history.turns[-1:]]
        if settings.rank_similarity and compared:
            score -= settings.rank_similarity * max(self.likeness(draft.token_ids, text) for text in compared)
        return score

    def _log_priors(self, answered: Sequence[Answered], drafts: Sequence[Sequence[Draft]]) -> list[list[float]]:
        """Return log p of each candidate with its end but without a history, in nats, divided by sqrt(tokens)."""
        if self.forward is None:
            raise RankingError("rank_prior needs the model that generated the candidates, but the ranker has no model.")
        replies = [[draft.token_ids] for candidates in drafts for draft in candidates]
        firsts = [len(history.turns) for history, candidates in zip(answered, drafts, strict=True) for _ in candidates]
        nats = iter(score_turns(self.forward, self.layout, replies, first_turns=firsts))
        return [[-next(nats)[0] / math.sqrt(len(draft.token_ids) + 1) for draft in candidates] for candidates in drafts]

    def _backward_log_probs(self, answered: Sequence[Answered], drafts: Sequence[Sequence[Draft]]) -> list[list[float]]:
        """Return log p of the last turns given each candidate, in nats per token, ends of turns included."""
        if self.backward is None:
            raise RankingError(
                "The checkpoint has no backward model. Train a backward model with xianliao-train --direction backward"
                " and save it as the subfolder backward/ of the checkpoint, or remove rank_backward."
            )
        dialogues, sizes = [], []
        for history, candidates in zip(answered, drafts, strict=True):
            before = [list(turn) for turn in reversed(history.turns[-CONTEXT_TURNS:])]
            before = self._fitting([draft.token_ids for draft in candidates], before)
            dialogues += [[draft.token_ids, *before] for draft in candidates]
            sizes += [sum(len(turn) + 1 for turn in before)] * len(candidates)
        nats = score_turns(self.backward, self.layout, dialogues)
        values = iter([-sum(turns[1:]) / size for turns, size in zip(nats, sizes, strict=True)])
        return [[next(values) for _ in candidates] for candidates in drafts]

    def _fitting(self, replies: Sequence[Sequence[int]], before: list[list[int]]) -> list[list[int]]:
        """Return the part of the turns before the replies that the backward model can read after the longest reply.

        The oldest turn is left out first, then the end of the last message. All replies are compared on the same
        tokens.
        """
        assert self.backward is not None
        limit = self.backward.max_tokens
        longest = max(replies, key=len)
        while limit is not None:
            excess = len(self.layout.lay_out([longest, *before]).input_ids) - limit
            if excess <= 0:
                break
            if len(before) > 1:
                before = before[:-1]
            elif len(before[0]) > excess:
                before = [before[0][:-excess]]
            else:
                raise RankingError(
                    f"The backward model reads at most {limit} tokens, and a reply has {len(longest)}. Lower"
                    " max_reply_tokens, or remove rank_backward."
                )
        return before


def likelihood(draft: Draft) -> float:
    """Return log p in nats, divided by the square root of the number of tokens; an EOS that was not forced counts."""
    return draft.log_prob / math.sqrt(max(1, len(draft.token_ids) + (draft.stop_reason != "limit")))
