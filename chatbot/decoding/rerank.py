"""The best of several replies: likely, worth the message, and nothing that has just been said.

    score(r) = log p(r | c) / tokens of r  +  w_b log p(c | r) / tokens of c  -  w_s max over s of likeness(r, s)

log p(r | c) is the model's own. log p(c | r) is that of a model trained on dialogues backwards (`xianliao-train --direction
backward`): maximum mutual information, which punishes what answers everything (Li et al., arXiv 1510.03055; DialoGPT,
arXiv 1911.00536, section 2.3). s are the bot's last replies and the message it answers; likeness is 1 - WRD
(`chatbot.similarity.token_vectors`) over the checkpoint's vectors, without any the share of common characters. Candidates that are as
good as equal to a likelier one are left out before.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from chatbot.decoding.candidates import Draft
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import XianliaoError
from chatbot.model.protocol import DialogueModel
from chatbot.model.scoring import score_turns
from chatbot.similarity.distance import distance
from chatbot.similarity.token_vectors import TokenVectors
from chatbot.text.layouts import Layout

SAME = 0.95
"""Likeness from which on two candidates are one."""

CONTEXT_TURNS = 2
"""Turns before the reply that the backward model has to guess."""


class RankingError(XianliaoError):
    """A ranking that needs what the checkpoint does not have."""


@dataclass(frozen=True)
class Answered:
    """What a candidate is judged against, as token ids.

    Attributes:
        turns: The history, oldest turn first; the last is the message.
        own: The bot's last replies.
    """

    turns: Sequence[Sequence[int]]
    own: Sequence[Sequence[int]]


@dataclass(frozen=True)
class Ranker:
    """Chooses among candidates.

    Attributes:
        layout: Of both models.
        vectors: Of the tokens, or None.
        backward: A model of dialogues in reverse order with the same tokenizer, or None.
    """

    layout: Layout
    vectors: TokenVectors | None = None
    backward: DialogueModel | None = None

    def best(
        self, answered: Sequence[Answered], drafts: Sequence[Sequence[Draft]], settings: ReplySettings
    ) -> list[int]:
        """For each history the place of the best of its candidates; of equal ones the first.

        Args:
            answered: The histories.
            drafts: The candidates of each, all ended.
            settings: Their weights.

        Raises:
            RankingError: The weights ask for a backward model and there is none.
        """
        if settings.rank_backward and self.backward is None:
            raise RankingError(
                "The checkpoint has no backward model; train one with xianliao-train --direction backward into its folder"
                " backward/, or leave rank_backward out."
            )
        kept = [self.different(candidates) for candidates in drafts]
        scores = [
            [self._score(history, candidates[place], settings) for place in places]
            for history, candidates, places in zip(answered, drafts, kept, strict=True)
        ]
        if settings.rank_backward:
            backward = self._backward(answered, [[drafts[i][p] for p in places] for i, places in enumerate(kept)])
            for row, values in zip(scores, backward, strict=True):
                row[:] = [score + settings.rank_backward * value for score, value in zip(row, values, strict=True)]
        return [places[int(np.argmax(row))] for places, row in zip(kept, scores, strict=True)]

    def different(self, drafts: Sequence[Draft]) -> list[int]:
        """Places of the candidates that are not as good as equal to a likelier one, in order."""
        order = sorted(range(len(drafts)), key=lambda place: -per_token(drafts[place]))
        kept: list[int] = []
        for place in order:
            ids = drafts[place].token_ids
            if all(self.likeness(ids, drafts[other].token_ids) < SAME for other in kept):
                kept.append(place)
        return sorted(kept)

    def likeness(self, a: Sequence[int], b: Sequence[int]) -> float:
        """How alike two texts are, at most 1."""
        if list(a) == list(b):
            return 1.0
        if self.vectors is not None:
            bags = [self.vectors.bag(text, "wrd") for text in (a, b)]
            if all(map(len, bags)):
                return 1 - distance(*bags, "wrd")
        return (Counter(a) & Counter(b)).total() / max(len(a), len(b), 1)

    def _score(self, history: Answered, draft: Draft, settings: ReplySettings) -> float:
        score = per_token(draft)
        said = [*history.own, *history.turns[-1:]]
        if settings.rank_similarity and said:
            score -= settings.rank_similarity * max(self.likeness(draft.token_ids, text) for text in said)
        return score

    def _backward(self, answered: Sequence[Answered], drafts: Sequence[Sequence[Draft]]) -> list[list[float]]:
        """log p of the last turns given each candidate, in nats per token and end."""
        dialogues, sizes = [], []
        for history, candidates in zip(answered, drafts, strict=True):
            before = [list(turn) for turn in reversed(history.turns[-CONTEXT_TURNS:])]
            dialogues += [[draft.token_ids, *before] for draft in candidates]
            sizes += [sum(len(turn) + 1 for turn in before)] * len(candidates)
        nats = score_turns(self.backward, self.layout, dialogues)
        values = iter([-sum(turns[1:]) / size for turns, size in zip(nats, sizes, strict=True)])
        return [[next(values) for _ in candidates] for candidates in drafts]


def per_token(draft: Draft) -> float:
    """log p in nats per token; an end counts that the model came to itself."""
    return draft.log_prob / max(1, len(draft.token_ids) + (draft.stop_reason != "limit"))
