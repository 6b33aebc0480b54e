"""n-gram baselines in nats per unit (character or end of turn): a model that does not beat them is useless.

Interpolated Witten-Bell smoothing (Bell, Witten & Cleary 1990; Chen & Goodman 1998, section 2.5) over characters and
end-of-turn marks:

    p(c | h) = (count(h c) + T(h) p(c | h')) / (count(h) + T(h)),      T(h) distinct units seen after h

down to a uniform distribution over the characters of the training data and one symbol for all other characters. Because
these share one symbol, the baseline can only get fewer nats than it should, which makes it harder to beat.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from chatbot.text.dialogue import join_spaces

END_OF_TURN = "\n\n"
"""Unit that stands for the end of a turn; no character equals it."""


class WittenBell:
    """Character n-gram model of dialogues; contexts reach across turns and are empty at the start of each dialogue.

    Args:
        order: 1 is a unigram model, 3 a trigram model.
        dialogues: Training dialogues, each a list of turns.
    """

    def __init__(self, order: int, dialogues: Iterable[Sequence[str]]):
        self.order = order
        self._after: list[defaultdict[tuple, Counter]] = [defaultdict(Counter) for _ in range(order)]
        vocabulary = {END_OF_TURN}
        for turns in dialogues:
            units = to_units(turns)
            vocabulary.update(units)
            for index, unit in enumerate(units):
                for length in range(min(order - 1, index) + 1):
                    self._after[length][tuple(units[index - length : index])][unit] += 1
        self._uniform = 1 / (len(vocabulary) + 1)
        self._totals = [{context: sum(after.values()) for context, after in level.items()} for level in self._after]

    def probability(self, unit: str, context: Sequence[str]) -> float:
        """Return p(unit | the last `order - 1` units of the context)."""
        p = self._uniform
        for length in range(min(self.order - 1, len(context)) + 1):
            key = tuple(context[len(context) - length :])
            total = self._totals[length].get(key)
            if total is None:
                break
            after = self._after[length][key]
            p = (after[unit] + len(after) * p) / (total + len(after))
        return p

    def nats_per_unit(self, dialogues: Iterable[Sequence[str]]) -> float:
        """Return -sum log p / units, in the same units as the models."""
        nats, count = 0.0, 0
        for turns in dialogues:
            units = to_units(turns)
            count += len(units)
            for index, unit in enumerate(units):
                context = units[max(0, index - self.order + 1) : index]
                nats -= math.log(self.probability(unit, context))
        return nats / max(count, 1)


def to_units(turns: Sequence[str]) -> list[str]:
    """Return the characters after space joining, with an end-of-turn mark after each turn."""
    return [unit for turn in turns for unit in (*join_spaces(turn), END_OF_TURN)]
