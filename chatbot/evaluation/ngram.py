"""n-gram baselines in nats/unit: what a model has to beat to have learnt anything.

Interpolated Witten-Bell smoothing (Bell, Witten & Cleary 1990; Chen & Goodman 1998, section 2.5) over characters and
end-of-turn marks:

    p(c | h) = (count(h c) + T(h) p(c | h')) / (count(h) + T(h)),      T(h) distinct units seen after h

down to a uniform distribution over the characters of the training data and one for all others. Letting all unseen
characters share one symbol understates the baseline's nats, so beating it is not made easier.
"""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence

from chatbot.text.dialogue import join_spaces

END_OF_TURN = "\n\n"
"""A unit that no single character can be."""


class WittenBell:
    """A character n-gram model of dialogues; contexts reach back over turns and start empty with each dialogue.

    Args:
        order: 1 is a unigram model, 3 a trigram model.
        dialogues: Training dialogues, lists of turns.
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
        """p(unit | the last order - 1 units of context)."""
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
        """-sum log p / units, the same unit as the models'."""
        nats, count = 0.0, 0
        for turns in dialogues:
            units = to_units(turns)
            count += len(units)
            for index, unit in enumerate(units):
                context = units[max(0, index - self.order + 1) : index]
                nats -= math.log(self.probability(unit, context))
        return nats / max(count, 1)


def to_units(turns: Sequence[str]) -> list[str]:
    """Characters after space joining, and an end-of-turn mark after each turn."""
    return [unit for turn in turns for unit in (*join_spaces(turn), END_OF_TURN)]
