"""Numbers of one method's replies, each with its interval."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from chatbot.evaluation import intervals, metrics
from chatbot.evaluation.answering import Answer, Context
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.likeness import Likeness
from chatbot.text.dialogue import clean_turn


@dataclass(frozen=True)
class Replies:
    """The replies of a method, or of people.

    Attributes:
        texts: As a person sees them.
        contexts: What they answer.
        answers: Their tokens and why they ended; None for people's.
    """

    texts: list[str]
    contexts: Sequence[Context]
    answers: Sequence[Answer] | None = None

    @cached_property
    def words(self) -> list[list[str]] | None:
        """Words of each, by jieba; None where it is not installed."""
        try:
            import jieba
        except ImportError:
            return None
        jieba.setLogLevel("ERROR")
        return [[word for word in jieba.cut(text) if word.strip()] for text in self.texts]


DIVERSITY = ("dist_1", "dist_2", "ent_4", "word_dist_1", "word_dist_2")


def grams(replies: Replies, name: str) -> list[list[tuple]] | None:
    """The n-grams that a number of diversity is about, by reply."""
    items = replies.words if name.startswith("word") else replies.texts
    return None if items is None else [metrics.ngrams(each, int(name[-1])) for each in items]


def common_budgets(everyone: Sequence[Replies], grid: Grid) -> dict[str, int]:
    """How many n-grams each number of diversity is taken over: half of what the shortest method has, at most the grid's."""
    found = {}
    for name in DIVERSITY:
        totals = [None if (each := grams(replies, name)) is None else sum(map(len, each)) for replies in everyone]
        if None not in totals:
            found[name] = min(grid.budget, *(total // 2 for total in totals))
    return found


def measure(replies: Replies, grid: Grid, budgets: dict[str, int], likeness: Likeness | None) -> dict:
    """All numbers of some replies; `intervals` holds the 95 % ones by the same names."""
    row: dict = {"replies": len(replies.texts), "intervals": {}}
    _diversity(row, replies, grid, budgets)
    _shares(row, replies)
    _means(row, replies, grid, likeness)
    _ends(row, replies, grid)
    _bleu(row, replies, grid)
    lengths = Counter(map(len, replies.texts))
    row["characters"] = sorted([length, count] for length, count in lengths.items())
    return row


def _put(row: dict, name: str, value: float, interval: intervals.Interval) -> None:
    row[name] = value
    row["intervals"][name] = list(interval)


def _diversity(row: dict, replies: Replies, grid: Grid, budgets: dict[str, int]) -> None:
    for name, budget in budgets.items():
        measures = {"dist": lambda items: len(set(items)) / len(items), "ent_": metrics.entropy_of}
        kind = measures["ent_" if name.startswith("ent") else "dist"]
        if budget:
            _put(row, name, *intervals.over_subsets(grams(replies, name), budget, kind, grid.subsets))


def _shares(row: dict, replies: Replies) -> None:
    last = [clean_turn(context.turns[-1]) for context in replies.contexts]
    counts = {
        "repetitive": sum(map(metrics.is_repetitive, replies.texts)),
        "echo": sum(map(metrics.is_echo, replies.texts, last)),
        "empty": sum(not text for text in replies.texts),
    }
    for name, count in counts.items():
        _put(row, name, count / len(replies.texts), intervals.share(count, len(replies.texts)))


def _means(row: dict, replies: Replies, grid: Grid, likeness: Likeness | None) -> None:
    values = {"rep_4": [metrics.repetition_n(text, 4) for text in replies.texts]}
    values["mean_characters"] = list(map(len, replies.texts))
    if likeness is not None and replies.answers is not None:
        pairs = zip(replies.texts, replies.contexts, strict=True)
        compared = [likeness.compare(text, context.reference) for text, context in pairs]
        values |= {name: [each[name] for each in compared] for name in compared[0]}
    for name, each in values.items():
        _put(row, name, metrics.mean(each), intervals.ratio(each, resamples=grid.resamples))


def _ends(row: dict, replies: Replies, grid: Grid) -> None:
    """How long they are in tokens, and whether they ended."""
    if replies.answers is None:
        return
    lengths = [len(answer.token_ids) for answer in replies.answers]
    reasons = [answer.stop_reason for answer in replies.answers]
    ended = [reason != "limit" for reason in reasons]
    for limit in grid.lengths:
        value = metrics.unfinished_share(lengths, ended, limit)
        _put(row, f"r_{limit}", value, intervals.share(round(value * len(lengths)), len(lengths)))
    row["longest_tokens"] = max(lengths)
    row["stop_reasons"] = {reason: reasons.count(reason) for reason in ("eos", "floor", "limit")}
    row["tokens"] = sorted([length, count] for length, count in Counter(lengths).items())


def _bleu(row: dict, replies: Replies, grid: Grid) -> None:
    """BLEU-2 and -4 with the Chinese tokenizer of sacrebleu (Post 2018); left out where it is not installed."""
    if replies.answers is None:
        return
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
            _put(row, f"bleu_{order}", score.score, (max(0.0, score.score - score._ci), score.score + score._ci))
