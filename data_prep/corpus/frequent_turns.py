"""Generic replies, advertisements and hot posts: texts that are too frequent, found by counting over the whole corpus.

Following Zhang et al. (DialoGPT, arXiv 1911.00536) and Wang et al. (EMNLP 2013, D13-1096): a text that answers very
many different turns is generic if it is short and an advertisement if it is long; a long turn with very many different
answers is a hot post, and a model trained on it learns little else. Thresholds are shares of all replies, so they hold
for a corpus of any size.

Generic replies, and the answers to a hot post, are thinned out to the number that the threshold allows; their content
alone decides which are kept. So a model still learns "哈哈", but not too often. Advertisements are all removed.
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import asdict, dataclass, fields
from pathlib import Path

import numpy as np

from chatbot.storage import write_stream
from data_prep.cleaning.rule import Rule
from data_prep.settings import FrequencySettings

GENERIC, COPIES, HOT = "generic_replies", "copied_replies", "hot_posts"
REASONS = (GENERIC, COPIES, HOT)
FREQUENCY_RULES = (
    Rule(GENERIC, "thin out short replies to very many turns"),
    Rule(COPIES, "remove long replies to very many turns: advertisements"),
    Rule(HOT, "thin out the replies to a long turn with very many replies"),
)
KEYS = {"kept_share": "kept"}  # name of an attribute of `FrequentTurns` in its file, where they differ


@dataclass(frozen=True)
class FrequentTurns:
    """Texts that are too frequent: N texts, replies first, then turns that are replied to.

    Attributes:
        hashes: `turn_hash` of the texts, uint64 `[N]`.
        reasons: Index into `REASONS`, int64 `[N]`; `HOT` marks turns that are replied to, the other reasons mark replies.
        kept_share: Share of the (turn, reply) pairs with this text that is kept, float64 `[N]`.
        top: Hashes of the most frequent replies, uint64 `[at most the number asked for]`.
    """

    hashes: np.ndarray
    reasons: np.ndarray
    kept_share: np.ndarray
    top: np.ndarray

    def __len__(self) -> int:
        return len(self.hashes)

    def save(self, path: Path) -> None:
        arrays = {KEYS.get(name, name): array for name, array in asdict(self).items()}
        write_stream(path, lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: Path) -> FrequentTurns:
        with np.load(path) as arrays:
            return cls(**{field.name: arrays[KEYS.get(field.name, field.name)] for field in fields(cls)})

    def find_dirty(self, turns: np.ndarray, starts: np.ndarray) -> np.ndarray:
        """Return for each turn the index of the reason why it is removed, or -1 if it is kept; int64 `[T]`.

        Args:
            turns: Hashes of the turns of all dialogues, one after the other, uint64 `[T]`.
            starts: Index of the first turn of each dialogue, and T, int64 `[dialogues + 1]`.
        """
        dirty = np.full(len(turns), -1)
        replies = reply_indices(starts)
        asked, answers = turns[replies - 1], turns[replies]
        draw = _pair_hash(asked, answers) / 2.0**64  # in [0, 1), and the same wherever the pair occurs
        is_hot = self.reasons == REASONS.index(HOT)
        for selected, texts in ((is_hot, asked), (~is_hot, answers)):
            hashes, reasons, kept_share = self.hashes[selected], self.reasons[selected], self.kept_share[selected]
            if len(hashes):
                order = np.argsort(hashes)
                row = order[np.searchsorted(hashes[order], texts).clip(max=len(hashes) - 1)]
                is_removed = (hashes[row] == texts) & (draw >= kept_share[row])
                dirty[replies[is_removed]] = reasons[row[is_removed]]
        return dirty


def reply_indices(starts: np.ndarray) -> np.ndarray:
    """Return the indices of all turns but the first ones of dialogues; `starts` is as in `FrequentTurns.find_dirty`."""
    is_reply = np.ones(int(starts[-1]) if len(starts) else 0, bool)
    is_reply[starts[:-1][starts[:-1] < starts[1:]]] = False
    return np.flatnonzero(is_reply)


def find_frequent(
    parts: Iterable[tuple[np.ndarray, np.ndarray]], settings: FrequencySettings, rules: Set[str], top: int
) -> FrequentTurns:
    """Count all replies; takes about 32 bytes of memory per reply.

    Args:
        parts: (turns, starts) of each part of the corpus, as in `FrequentTurns.find_dirty`.
        settings: Thresholds.
        rules: Names of the rules that are switched on.
        top: Number of the most frequent replies to remember.
    """
    asked_parts, reply_parts = [np.zeros(0, np.uint64)], [np.zeros(0, np.uint64)]
    for turns, starts in parts:
        indices = reply_indices(starts)
        asked_parts.append(turns[indices - 1])
        reply_parts.append(turns[indices])
    asked, replies = np.concatenate(asked_parts), np.concatenate(reply_parts)
    del asked_parts, reply_parts
    generic, copied, hot = (
        max(settings.least, share * len(replies))
        for share in (settings.generic_share, settings.copied_share, settings.hot_share)
    )
    hashes, counts = np.unique(replies, return_counts=True)
    most_frequent = hashes[np.lexsort((hashes, -counts))[:top]]
    hashes, counts = _count_different(hashes[counts > min(generic, copied)], replies, asked)
    texts = [
        _above(hashes, counts, COPIES, _is_long(hashes) & (COPIES in rules), copied),
        _above(hashes, counts, GENERIC, ~_is_long(hashes) & (GENERIC in rules), generic),
    ]
    hashes, counts = np.unique(asked, return_counts=True)
    hashes, counts = _count_different(hashes[counts > hot], asked, replies)
    texts.append(_above(hashes, counts, HOT, _is_long(hashes) & (HOT in rules), hot))
    return FrequentTurns(
        hashes=np.concatenate([hashes for hashes, _, _ in texts]),
        reasons=np.concatenate([reasons for _, reasons, _ in texts]),
        kept_share=np.concatenate([kept_share for _, _, kept_share in texts]),
        top=most_frequent,
    )


def _above(
    hashes: np.ndarray, counts: np.ndarray, reason: str, is_candidate: np.ndarray, threshold: float
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return hash, removal reason and share to keep of each candidate turn that occurs beside too many different texts."""
    selected = is_candidate & (counts > threshold)
    kept_share = np.zeros(selected.sum()) if reason == COPIES else threshold / counts[selected]
    return hashes[selected], np.full(selected.sum(), REASONS.index(reason)), kept_share


def _is_long(hashes: np.ndarray) -> np.ndarray:
    """Return which texts are long, by the last bit of `turn_hash`."""
    return (hashes & np.uint64(1)).astype(bool)


def _count_different(hashes: np.ndarray, texts: np.ndarray, others: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the hashes, sorted, and for each the number of different texts that it is paired with.

    Args:
        hashes: Hashes of the texts whose partners are counted; few, because all pairs with them are sorted.
        texts, others: First and second hash of each pair, uint64 `[pairs]`.
    """
    if not len(hashes):
        return hashes, np.zeros(0, np.int64)
    selected = np.isin(texts, hashes)
    pairs = np.unique(np.stack([texts[selected], others[selected]], 1), axis=0)
    return np.unique(pairs[:, 0], return_counts=True)


def _pair_hash(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Return a hash of each pair of hashes, uint64: the finaliser of SplitMix64 (Steele, Lea & Flood 2014)."""
    mixed = left * np.uint64(0x9E3779B97F4A7C15) + right
    for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
        mixed = (mixed ^ (mixed >> np.uint64(shift))) * np.uint64(factor)
    return mixed ^ (mixed >> np.uint64(31))
