"""Metrics of generated replies; all are pure functions of texts or tokens."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

_THREE_TIMES = re.compile(r"(.{2,}?)\1\1", re.S)


def ngrams(items: Sequence[Hashable], n: int) -> list[tuple]:
    """All n-grams, in order; fewer than n items have none."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def distinct_n(replies: Iterable[Sequence[Hashable]], n: int) -> float:
    """Dist-n (Li et al., arXiv 1510.03055): distinct / total n-grams over the whole set. It falls with the set's size."""
    grams = [gram for reply in replies for gram in ngrams(reply, n)]
    return len(set(grams)) / len(grams) if grams else 0.0


def repetition_n(reply: Sequence[Hashable], n: int) -> float:
    """rep-n (Welleck et al., arXiv 1908.04319): 1 - distinct / total n-grams of one reply; 0 when it is too short."""
    grams = ngrams(reply, n)
    return 1 - len(set(grams)) / len(grams) if grams else 0.0


def entropy_n(replies: Iterable[Sequence[Hashable]], n: int) -> float:
    """Ent-n (Zhang et al., NeurIPS 2018, "Generating Informative and Diverse Conversational Responses"), in nats.

    The entropy of the n-grams of the whole set: unlike Dist-n it sees how often each is said.
    """
    return entropy_of(gram for reply in replies for gram in ngrams(reply, n))


def entropy_of(items: Iterable[Hashable]) -> float:
    """Entropy of the histogram of some things, in nats."""
    counts = Counter(items)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else 0.0


def is_repetitive(reply: str) -> bool:
    """Whether two or more characters stand three times in a row, or more than half of the pairs of a reply of eight and
    more characters are repeated ones."""
    return _THREE_TIMES.search(reply) is not None or (len(reply) >= 8 and repetition_n(reply, 2) > 0.5)


def is_echo(reply: str, message: str) -> bool:
    """Whether a reply of four and more characters says the message again: they share 80 % of their characters.

    Shared characters are counted with how often they stand, over the length of the longer text.
    """
    if len(reply) < 4 or not message:
        return False
    return (Counter(reply) & Counter(message)).total() / max(len(reply), len(message)) >= 0.8


def unfinished_share(lengths: Iterable[int], ended: Iterable[bool], limit: int) -> float:
    """r_L (Welleck et al., arXiv 2002.02492): share of decodes without an end of turn after `limit` tokens.

    Args:
        lengths: Tokens of each reply, end of turn not counted.
        ended: Whether it ended by itself; False when it was cut off, at L or before.
        limit: L.
    """
    unfinished = [length >= limit or not end for length, end in zip(lengths, ended, strict=True)]
    return sum(unfinished) / len(unfinished) if unfinished else 0.0


def mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0
