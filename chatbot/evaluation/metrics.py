"""Metrics of generated replies: pure functions of texts or tokens, and all metrics of a method with their intervals."""

from __future__ import annotations

import math
import re
import warnings
from collections import Counter
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from chatbot.evaluation import intervals
from chatbot.evaluation.answering import Answer, Context
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.likeness import Likeness
from chatbot.text.dialogue import clean_turn

DIVERSITY = ("dist_1", "dist_2", "ent_4", "word_dist_1", "word_dist_2")
"""Metrics of diversity: Dist-n and Ent-n of characters or words; each name ends with n."""

_THREE_TIMES = re.compile(r"(.{2,}?)\1\1", re.S)


def ngrams(items: Sequence[Hashable], n: int) -> list[tuple]:
    """Return all n-grams in order; fewer than n items have none."""
    return [tuple(items[start : start + n]) for start in range(len(items) - n + 1)]


def distinct_share(items: Sequence[Hashable]) -> float:
    """Return the share of distinct items. For n-grams this is Dist-n (Li et al., arXiv 1510.03055).

    The value falls with the number of items, so compare only values over the same number.
    """
    return len(set(items)) / len(items) if items else 0.0


def entropy(items: Iterable[Hashable]) -> float:
    """Return the entropy of the histogram of items, in nats.

    For n-grams this is Ent-n (Zhang et al., NeurIPS 2018, "Generating Informative and Diverse Conversational
    Responses"). Unlike Dist-n it depends on how often each n-gram occurs.
    """
    counts = Counter(items)
    total = counts.total()
    return -sum(count / total * math.log(count / total) for count in counts.values()) if total else 0.0


def repetition_n(reply: Sequence[Hashable], n: int) -> float:
    """Return rep-n of one reply (Welleck et al., arXiv 1908.04319): 1 - distinct / total n-grams; 0 if too short."""
    grams = ngrams(reply, n)
    return 1 - distinct_share(grams) if grams else 0.0


def is_repetitive(reply: str) -> bool:
    """Whether a reply is a loop.

    In a loop, a sequence of two or more characters occurs three times in a row, or the reply has at least eight
    characters and more than half of its character pairs have occurred before.
    """
    return _THREE_TIMES.search(reply) is not None or (len(reply) >= 8 and repetition_n(reply, 2) > 0.5)


def is_echo(reply: str, message: str) -> bool:
    """Whether a reply of at least four characters repeats the message: they share 80 % of their characters.

    Shared characters are counted with multiplicity and divided by the length of the longer text.
    """
    if len(reply) < 4 or not message:
        return False
    return (Counter(reply) & Counter(message)).total() / max(len(reply), len(message)) >= 0.8


def unfinished_share(lengths: Iterable[int], ended: Iterable[bool], limit: int) -> float:
    """Return r_L (Welleck et al., arXiv 2002.02492): share of replies without an end of turn after L tokens.

    Args:
        lengths: Tokens of each reply, end of turn not counted.
        ended: Whether each reply ended by itself; False if it was cut off (at L tokens or earlier).
        limit: L.
    """
    unfinished = [length >= limit or not end for length, end in zip(lengths, ended, strict=True)]
    return sum(unfinished) / len(unfinished) if unfinished else 0.0


def mean(values: Iterable[float]) -> float:
    """Return the mean, or 0 for an empty list."""
    values = list(values)
    return sum(values) / len(values) if values else 0.0


@dataclass(frozen=True)
class Replies:
    """Replies of a decoding method, or of people.

    Attributes:
        texts: The replies as a person sees them.
        contexts: The contexts of the replies.
        answers: Tokens and stop reasons; None for replies of people.
    """

    texts: list[str]
    contexts: Sequence[Context]
    answers: Sequence[Answer] | None = None

    @cached_property
    def words(self) -> list[list[str]] | None:
        """Each reply split into words by jieba, or None if jieba is not installed."""
        try:
            import jieba
        except ImportError:
            return None
        jieba.setLogLevel("ERROR")
        return [[word for word in jieba.cut(text) if word.strip()] for text in self.texts]

    def ngrams(self, metric: str) -> list[list[tuple]] | None:
        """Return the n-grams of each reply for a metric of `DIVERSITY`, or None if words are not available."""
        n = int(metric[-1])
        if not metric.startswith("word"):
            return [ngrams(text, n) for text in self.texts]
        return None if self.words is None else [ngrams(words, n) for words in self.words]


def common_budgets(reply_sets: Sequence[Replies], grid: Grid) -> dict[str, int]:
    """Return the number of n-grams from which each metric of diversity is computed, the same for all methods.

    The number is half of the n-grams of the method that has the fewest, at most `grid.budget`. Metrics that cannot be
    measured are left out.
    """
    budgets = {}
    for metric in DIVERSITY:
        totals = []
        for replies in reply_sets:
            grams = replies.ngrams(metric)
            if grams is not None:
                totals.append(sum(map(len, grams)))
        if len(totals) == len(reply_sets):
            budgets[metric] = min(grid.budget, *(total // 2 for total in totals))
    return budgets


def measure(replies: Replies, grid: Grid, budgets: dict[str, int], likeness: Likeness | None) -> dict[str, Any]:
    """Return all metrics of some replies; `intervals` holds the 95 % intervals under the same names.

    Args:
        replies: The replies.
        grid: Lengths of r_L, and numbers of subsets and resamples.
        budgets: From `common_budgets`.
        likeness: Comparison with the references; None leaves it out.
    """
    row: dict[str, Any] = {"replies": len(replies.texts), "intervals": {}}
    _add_diversity(row, replies, grid, budgets)
    _add_shares(row, replies)
    _add_means(row, replies, grid, likeness)
    if replies.answers is not None:
        _add_endings(row, replies.answers, grid)
        _add_bleu(row, replies, grid)
    row["characters"] = _histogram(map(len, replies.texts))
    return row


def _add(row: dict[str, Any], name: str, value: float, interval: intervals.Interval) -> None:
    row[name] = value
    row["intervals"][name] = list(interval)


def _histogram(lengths: Iterable[int]) -> list[list[int]]:
    """Return [length, count] pairs, shortest first."""
    return sorted([length, count] for length, count in Counter(lengths).items())


def _add_diversity(row: dict[str, Any], replies: Replies, grid: Grid, budgets: dict[str, int]) -> None:
    for metric, budget in budgets.items():
        function: Callable[[list], float] = entropy if metric.startswith("ent") else distinct_share
        grams = replies.ngrams(metric)
        if budget and grams is not None:
            _add(row, metric, *intervals.over_subsets(grams, budget, function, grid.subsets))


def _add_shares(row: dict[str, Any], replies: Replies) -> None:
    messages = [clean_turn(context.turns[-1]) for context in replies.contexts]
    counts = {
        "repetitive": sum(map(is_repetitive, replies.texts)),
        "echo": sum(map(is_echo, replies.texts, messages)),
        "empty": sum(not text for text in replies.texts),
    }
    for name, count in counts.items():
        _add(row, name, count / len(replies.texts), intervals.share(count, len(replies.texts)))


def _add_means(row: dict[str, Any], replies: Replies, grid: Grid, likeness: Likeness | None) -> None:
    columns: dict[str, list[float]] = {
        "rep_4": [repetition_n(text, 4) for text in replies.texts],
        "mean_characters": [float(len(text)) for text in replies.texts],
    }
    if likeness is not None and replies.answers is not None:
        pairs = zip(replies.texts, replies.contexts, strict=True)
        compared = [likeness.compare(text, context.reference) for text, context in pairs]
        for name in compared[0]:
            columns[name] = [values[name] for values in compared]
    for name, values in columns.items():
        _add(row, name, mean(values), intervals.ratio(values, resamples=grid.resamples))


def _add_endings(row: dict[str, Any], answers: Sequence[Answer], grid: Grid) -> None:
    """Add lengths in tokens, r_L and stop reasons."""
    lengths = [len(answer.token_ids) for answer in answers]
    reasons = [answer.stop_reason for answer in answers]
    ended = [reason != "limit" for reason in reasons]
    for limit in grid.lengths:
        value = unfinished_share(lengths, ended, limit)
        _add(row, f"r_{limit}", value, intervals.share(round(value * len(lengths)), len(lengths)))
    row["longest_tokens"] = max(lengths)
    row["stop_reasons"] = {reason: reasons.count(reason) for reason in ("eos", "floor", "limit")}
    row["tokens"] = _histogram(lengths)


def _add_bleu(row: dict[str, Any], replies: Replies, grid: Grid) -> None:
    """Add BLEU-2 and BLEU-4 with the Chinese tokenizer of sacrebleu (Post 2018), if sacrebleu is installed."""
    try:
        from sacrebleu.metrics import BLEU
    except ImportError:
        return
    references = [[context.reference for context in replies.contexts]]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for order in (2, 4):
            metric = BLEU(tokenize="zh", max_ngram_order=order)
            score = metric.corpus_score(replies.texts, references, n_bootstrap=grid.resamples)
            _add(row, f"bleu_{order}", score.score, (max(0.0, score.score - score._ci), score.score + score._ci))
