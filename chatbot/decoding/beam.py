"""Beam search whose replies end within the floor's bound."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile

import torch

from chatbot.decoding.batch import Steps
from chatbot.decoding.candidates import Candidates, Draft, next_candidates
from chatbot.decoding.rules.eos_floor import StopReason
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary

LEAST = -1e30
"""Less is no probability at all."""


@dataclass(frozen=True)
class Hypothesis:
    """A reply that beam search keeps.

    Attributes:
        token_ids: EOS not included.
        score: Sum of log p with the rules and the floor, what hypotheses are compared by; not divided by a length, which
            would undo the bound.
        log_prob: See `Draft`.
        place: Its row in the batch; of one that has ended no meaning.
        stop_reason: None while it goes on.
    """

    token_ids: tuple[int, ...] = ()
    score: float = 0.0
    log_prob: float = 0.0
    place: int = 0
    stop_reason: StopReason | None = None


def beam_search(
    steps: Steps,
    logits: torch.Tensor,
    reply_speakers: Sequence[int],
    settings: ReplySettings,
    vocabulary: Vocabulary,
    said: Sequence[Sequence[Sequence[int]]],
) -> Iterator[list[Draft]]:
    """Keeps the `settings.beams` best of the ended and the going hypotheses; a row is done when its best has ended.

    A score only falls, so nothing could overtake that one. From t0 + delta on EOS has half of the mass or more: the end of
    the best going hypothesis is then no worse than any other continuation, which is why no reply is longer than that
    and one. Until a row is done its draft holds what all its hypotheses begin with, so it only grows.

    Args and yields: see `chatbot.decoding.loop.decode`.
    """
    beams = [[Hypothesis(place=row)] for row in range(len(reply_speakers))]
    drafts = [Draft() for _ in beams]
    speakers = torch.tensor(reply_speakers, device=logits.device)
    for emitted in range(settings.limit_tokens + 1):
        going = [hypothesis for beam in beams for hypothesis in beam if hypothesis.stop_reason is None]
        before = [said[row] for row, beam in enumerate(beams) for h in beam if h.stop_reason is None]
        found = next_candidates(logits, settings, vocabulary, [h.token_ids for h in going], before)
        places = dict(zip(map(id, going), range(len(going)), strict=True))
        tops = _Tops(found, settings, vocabulary.end_id)
        for row, beam in enumerate(beams):
            if drafts[row].stop_reason is None:
                beams[row] = _end(beam) if emitted >= settings.limit_tokens else tops.extend(beam, places)
                drafts[row] = _draft(beams[row])
                if drafts[row].stop_reason is not None:
                    beams[row] = []
        yield drafts
        going = [hypothesis for beam in beams for hypothesis in beam if hypothesis.stop_reason is None]
        if not going:
            return
        kept = torch.tensor([hypothesis.place for hypothesis in going], device=logits.device)
        steps.select(kept)
        speakers = speakers[kept]
        logits = steps(torch.tensor([hypothesis.token_ids[-1] for hypothesis in going], device=logits.device), speakers)


class _Tops:
    """The best continuations of every hypothesis of a step, with and without the floor."""

    def __init__(self, found: Candidates, settings: ReplySettings, end_id: int):
        self.beams, self.end_id = settings.beams, end_id
        self.own = found.own
        unfloored = found.ruled.log_softmax(-1)
        floored = unfloored if found.floor is None else found.floor.apply(unfloored, found.emitted, end_id)
        best = floored.topk(min(self.beams, floored.shape[-1]))
        self.values, self.tokens = best.values.tolist(), best.indices.tolist()
        self.unfloored_end = unfloored[:, end_id].tolist()
        self.unfloored_best = unfloored.topk(min(self.beams, floored.shape[-1])).values.tolist()

    def extend(self, beam: list[Hypothesis], places: dict[int, int]) -> list[Hypothesis]:
        """The best of the hypotheses that have ended and of the continuations of the others."""
        pool = [hypothesis for hypothesis in beam if hypothesis.stop_reason is not None]
        for hypothesis in beam:
            if hypothesis.stop_reason is not None:
                continue
            place = places[id(hypothesis)]
            for value, token in zip(self.values[place], self.tokens[place], strict=True):
                score = hypothesis.score + value
                if value < LEAST:
                    continue
                log_prob = hypothesis.log_prob + self.own[place, token].item()
                if token == self.end_id:
                    reason = "eos" if self._ends_anyway(place) else "floor"
                    pool.append(Hypothesis(hypothesis.token_ids, score, log_prob, place, reason))
                else:
                    pool.append(Hypothesis((*hypothesis.token_ids, token), score, log_prob, place))
        return sorted(pool, key=lambda h: -h.score)[: self.beams]

    def _ends_anyway(self, place: int) -> bool:
        """Whether EOS is among the best continuations without the floor, too."""
        return self.unfloored_end[place] >= max(self.unfloored_best[place][-1], LEAST)


def _end(beam: list[Hypothesis]) -> list[Hypothesis]:
    """At the limit: the best hypothesis ends where it is."""
    best = beam[0]
    return [best if best.stop_reason is not None else replace(best, stop_reason="limit")]


def _draft(beam: list[Hypothesis]) -> Draft:
    best = beam[0]
    if best.stop_reason is not None:
        return Draft(list(best.token_ids), best.log_prob, best.stop_reason)
    columns = zip(*(hypothesis.token_ids for hypothesis in beam), strict=False)
    return Draft([column[0] for column in takewhile(lambda column: len(set(column)) == 1, columns)])
