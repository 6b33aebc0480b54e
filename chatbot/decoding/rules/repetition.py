"""Rules against replies that repeat themselves or the replies before; none of them ever touches the end of turn.

They change the logits before temperature and floor, so the bound on a reply's length is as it was: what they take from
other tokens can only bring the end nearer. (transformers' own rules of these names count the prompt and penalise EOS.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class RepetitionRules:
    """What counts as said: the reply so far and the bot's last replies.

    Attributes:
        penalty: Logits of tokens that have been said are divided by it, negative ones multiplied (CTRL, Keskar et al.,
            arXiv 1909.05858, section 4.1); 1 changes nothing.
        ngram: No n tokens that have been said one after the other are said again (Paulus et al., arXiv 1705.04304,
            section 2.5); 0 allows all.
        end_id: The end of turn.
        cost: Nats that a token loses for each time that it completed these n tokens before; infinity forbids it. A
            finite cost lets "哈哈哈哈哈" be and still breaks loops, which pay it again at every turn of theirs.
    """

    penalty: float
    ngram: int
    end_id: int
    cost: float = math.inf

    def apply(
        self, logits: torch.Tensor, replies: Sequence[Sequence[int]], earlier: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        """Changes the logits `[B, V]` in place.

        Args:
            logits: Of the next token of each reply.
            replies: Tokens so far of each, B of them.
            earlier: The last replies in each conversation, B lists of them.
        """
        for row, (reply, before) in enumerate(zip(replies, earlier, strict=True)):
            said = {token for text in (reply, *before) for token in text} - {self.end_id}
            if self.penalty != 1 and said:
                places = torch.tensor(sorted(said), device=logits.device)
                values = logits[row, places]
                logits[row, places] = torch.where(values > 0, values / self.penalty, values * self.penalty)
            times = self._completing(reply, before)
            if times:
                places = torch.tensor(list(times), device=logits.device)
                logits[row, places] -= self.cost * torch.tensor(list(times.values()), device=logits.device)

    def _completing(self, reply: Sequence[int], before: Sequence[Sequence[int]]) -> Counter[int]:
        """Tokens that would make an n-gram which has been said, and how often it has; the end is none of them."""
        size, times = self.ngram, Counter()
        if not size or len(reply) < size - 1:
            return times
        last = tuple(reply[len(reply) - size + 1 :])
        for text in (reply, *before):
            for start in range(len(text) - size + 1):
                if tuple(text[start : start + size - 1]) == last and text[start + size - 1] != self.end_id:
                    times[text[start + size - 1]] += 1
        return times
