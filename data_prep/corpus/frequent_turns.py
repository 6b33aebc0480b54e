"""Generic replies, advertisements and hot posts: found by counting, because one text alone does not show it.

Following Zhang et al. (DialoGPT, arXiv 1911.00536) and Wang et al. (EMNLP 2013, D13-1096): a text that answers very many
different turns is generic when it is short and an advertisement when it is long, and a long turn with very many
different answers, a hot post, would teach little else. Thresholds are shares of all replies, so they hold for any size
of corpus.

Generic replies and the answers of a hot post are thinned out: as many as the threshold stay, chosen by content alone,
so "哈哈" is still learnt, in measure. Advertisements go altogether.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from chatbot.storage import write_stream
from data_prep.cleaning.rules import Rule
from data_prep.settings import FrequencySettings

GENERIC, COPIES, HOT = "generic_replies", "copied_replies", "hot_posts"
FREQUENCY_RULES = (
    Rule(GENERIC, "short replies to very many turns are thinned out"),
    Rule(COPIES, "long replies to very many turns go: advertisements"),
    Rule(HOT, "the replies to a long turn with very many of them are thinned out"),
)
REASONS = (GENERIC, COPIES, HOT)


@dataclass(frozen=True)
class FrequentTurns:
    """What is thinned out: N texts, first replies, then turns with replies.

    Attributes:
        hashes: uint64 `[N]`, `turn_hash` of the texts.
        reasons: int64 `[N]`, index into `REASONS`; `HOT` is of turns, the others of replies.
        kept: float64 `[N]`, share of its (turn, reply) pairs that stays.
        top: uint64, hashes of the most frequent replies.
    """

    hashes: np.ndarray
    reasons: np.ndarray
    kept: np.ndarray
    top: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    def save(self, path: Path) -> None:
        write_stream(path, lambda file: np.savez(file, **asdict(self)))

    @classmethod
    def load(cls, path: Path) -> FrequentTurns:
        with np.load(path) as found:
            return cls(**found)

    def dirty(self, turns: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """For each turn the index of the reason why it goes, or -1; int64 `[T]`.

        Args:
            turns: uint64 `[T]`, hashes of the turns of all dialogues, one after the other.
            starts: int64 `[dialogues + 1]`, where dialogues begin.
        """
        reason = np.full(len(turns), -1)
        replies = reply_places(starts)
        draw = _mixed(turns[replies - 1], turns[replies]) / 2.0**64  # the same wherever the pair stands
        is_turn = self.reasons == REASONS.index(HOT)
        for chosen, texts in ((is_turn, turns[replies - 1]), (~is_turn, turns[replies])):
            hashes, reasons, kept = self.hashes[chosen], self.reasons[chosen], self.kept[chosen]
            if len(hashes):
                order = np.argsort(hashes)
                at = order[np.searchsorted(hashes[order], texts).clip(max=len(hashes) - 1)]
                goes = (hashes[at] == texts) & (draw >= kept[at])
                reason[replies[goes]] = reasons[at[goes]]
        return reason


def reply_places(starts: np.ndarray) -> np.ndarray:
    """Places of the turns that answer another, given where dialogues begin and the last one ends."""
    is_reply = np.ones(int(starts[-1]) if len(starts) else 0, bool)
    is_reply[starts[:-1][starts[:-1] < starts[1:]]] = False
    return np.flatnonzero(is_reply)


def find_frequent(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], settings: FrequencySettings, on: set[str], top: int
) -> FrequentTurns:
    """Counts all replies; takes about 32 bytes of memory for each.

    Args:
        parts: (turns, starts) of each part of the corpus, as in `FrequentTurns.dirty`.
        settings: Thresholds.
        on: Names of the rules that are on.
        top: How many of the most frequent replies to remember.
    """
    pairs = [(turns[places - 1], turns[places]) for turns, starts in parts if len(places := reply_places(starts))]
    asked, replies = [np.concatenate(column) for column in zip(*pairs, strict=True)] or [np.zeros(0, np.uint64)] * 2
    count = len(replies)
    del pairs
    found = []
    generic, copied, hot = (
        max(settings.least, share * count)
        for share in (settings.generic_share, settings.copied_share, settings.hot_share)
    )
    for texts, others, is_reply in ((replies, asked, True), (asked, replies, False)):
        hashes, counts = np.unique(texts, return_counts=True)
        if is_reply:
            most_frequent = hashes[np.lexsort((hashes, -counts))[:top]]
        hashes = hashes[counts > (min(generic, copied) if is_reply else hot)]  # few: only these are looked at closely
        hashes, different = _different(hashes, texts, others)
        is_long = (hashes & np.uint64(1)).astype(bool)
        rules = ((COPIES, is_long, copied), (GENERIC, ~is_long, generic)) if is_reply else ((HOT, is_long, hot),)
        for rule, chosen, most in rules:
            chosen = chosen & (different > most) & (rule in on)
            kept = np.zeros(chosen.sum()) if rule == COPIES else most / different[chosen]
            found.append((hashes[chosen], np.full(chosen.sum(), REASONS.index(rule)), kept))
    return FrequentTurns(*(np.concatenate(column) for column in zip(*found, strict=True)), most_frequent)


def _different(hashes: np.ndarray, texts: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The hashes again, with how many different others each stands with."""
    if not len(hashes):
        return hashes, np.zeros(0, np.int64)
    places = np.flatnonzero(np.isin(texts, hashes))
    pairs = np.unique(np.stack([texts[places], others[places]], 1), axis=0)
    return np.unique(pairs[:, 0], return_counts=True)


def _mixed(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """A hash of pairs of hashes, uint64 (the finaliser of SplitMix64)."""
    mixed = left * np.uint64(0x9E3779B97F4A7C15) + right
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
