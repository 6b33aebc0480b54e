"""Rules that penalize repetition within a reply and of earlier replies; none changes the logit of EOS.

The bound on the length of a reply holds with these rules: they run before temperature and EOS floor, and they take
probability only from tokens other than EOS, so a reply can only end sooner. (The rules of the same names in
transformers count the prompt as well and penalise EOS.)
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from chatbot.decoding.settings import ReplySettings

REMEMBERED_REPLIES = 3
"""Number of the bot's last replies that the rules against repetition use."""

MAX_DRY_TOKENS = 50
"""Maximum length of a repeated sequence that DRY counts, so that a step takes linear time."""

MAX_DRY_NATS = 50.0
"""Maximum nats that DRY subtracts: a factor of 2e-22, which in effect forbids the token, but keeps the logits finite
for the means and deviations of later rules."""


def last_replies(turns: Sequence[Sequence[int]]) -> Sequence[Sequence[int]]:
    """Return the bot's last replies in a history, newest first.

    Args:
        turns: Token ids of the turns, oldest first; the last is the message.
    """
    return turns[-2::-2][:REMEMBERED_REPLIES]


@dataclass(frozen=True)
class RepetitionRules:
    """Penalties on tokens of the reply so far and of the bot's last replies.

    Attributes:
        penalty: Positive logits of these tokens are divided by it, negative ones are multiplied (CTRL, Keskar et al.,
            arXiv 1909.05858, section 4.1); 1 changes nothing.
        ngram: Length of the n-grams that should not occur twice (Paulus et al., arXiv 1705.04304, section 2.5); 0
            switches the rule off.
        end_id: Id of the end of turn.
        cost: Nats that a token loses for each earlier time that it completed the same n-gram; infinity forbids it. A
            finite cost allows "哈哈哈哈哈" but still breaks loops, because the loss grows with every round of a loop.
    """

    penalty: float
    ngram: int
    end_id: int
    cost: float = math.inf

    def apply(
        self, logits: torch.Tensor, replies: Sequence[Sequence[int]], earlier: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        """Change the logits in place.

        Args:
            logits: Logits `[B, V]` of the next token of each reply.
            replies: Token ids of each reply so far.
            earlier: Token ids of the last replies in each conversation.
        """
        for row, (reply, before) in enumerate(zip(replies, earlier, strict=True)):
            used = {token for text in (reply, *before) for token in text} - {self.end_id}
            if self.penalty != 1 and used:
                tokens = torch.tensor(sorted(used), device=logits.device)
                values = logits[row, tokens]
                logits[row, tokens] = torch.where(values > 0, values / self.penalty, values * self.penalty)
            times = self._times_completed(reply, before)
            if times:
                tokens = torch.tensor(list(times), device=logits.device)
                logits[row, tokens] -= self.cost * torch.tensor(list(times.values()), device=logits.device)

    def _times_completed(self, reply: Sequence[int], before: Sequence[Sequence[int]]) -> Counter[int]:
        """Return, for each token except EOS, how many earlier occurrences of an n-gram the token would repeat."""
        size = self.ngram
        times: Counter[int] = Counter()
        if not size or len(reply) < size - 1:
            return times
        last = tuple(reply[len(reply) - size + 1 :])
        for text in (reply, *before):
            for start in range(len(text) - size + 1):
                if tuple(text[start : start + size - 1]) == last and text[start + size - 1] != self.end_id:
                    times[text[start + size - 1]] += 1
        return times


@dataclass(frozen=True)
class Dry:
    """DRY ("don't repeat yourself", p-e-w, github.com/oobabooga/text-generation-webui, pull request 5677).

    If the last n tokens also occur directly before an earlier v, the logit of v loses multiplier * base^(n - allowed)
    nats; n >= allowed is the largest number for which this is true. The reply and each of the bot's last replies are
    searched separately, so no sequence breakers are needed; the original searches the prompt.

    Attributes:
        multiplier: Loss in nats at n = allowed.
        base: Factor for each further token.
        allowed: Smallest n that costs anything.
        end_id: Id of the end of turn, whose logit never changes.
    """

    multiplier: float
    base: float
    allowed: int
    end_id: int

    def apply(
        self, logits: torch.Tensor, replies: Sequence[Sequence[int]], earlier: Sequence[Sequence[Sequence[int]]]
    ) -> None:
        """Change the logits in place; arguments as for `RepetitionRules.apply`."""
        for row, (reply, before) in enumerate(zip(replies, earlier, strict=True)):
            losses = {
                token: self._loss(count)
                for token, count in self._matched(reply, before).items()
                if count >= self.allowed
            }
            if losses:
                tokens = torch.tensor(list(losses), device=logits.device)
                logits[row, tokens] -= torch.tensor(list(losses.values()), dtype=logits.dtype, device=logits.device)

    def _loss(self, matched: int) -> float:
        nats = math.log(self.multiplier) + (matched - self.allowed) * math.log(self.base)
        return math.exp(min(nats, math.log(MAX_DRY_NATS)))

    def _matched(self, reply: Sequence[int], before: Sequence[Sequence[int]]) -> dict[int, int]:
        """Return, for each token that followed an earlier copy of the last token, the longest match before it."""
        longest: dict[int, int] = {}
        for text in (reply, *before):
            for position in range(1, len(text)):
                if reply and text[position - 1] == reply[-1] and (token := text[position]) != self.end_id:
                    most, count = min(position, len(reply), MAX_DRY_TOKENS), 1
                    while count < most and text[position - 1 - count] == reply[-1 - count]:
                        count += 1
                    longest[token] = max(longest.get(token, 0), count)
        return longest


def repetition_rules(settings: ReplySettings, end_id: int) -> list[RepetitionRules | Dry]:
    """Return the rules against repetition that the settings switch on."""
    rules: list[RepetitionRules | Dry] = []
    if settings.repetition_penalty != 1 or settings.no_repeat_ngram:
        cost = math.inf if settings.repeat_cost is None else settings.repeat_cost
        rules.append(RepetitionRules(settings.repetition_penalty, settings.no_repeat_ngram, end_id, cost))
    if settings.dry_multiplier:
        rules.append(Dry(settings.dry_multiplier, settings.dry_base, settings.dry_allowed_length, end_id))
    return rules
