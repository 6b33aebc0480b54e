"""Frequent turns and near-duplicates, which only many dialogues together show."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_prep.corpus.frequent_turns import COPIES, GENERIC, HOT, REASONS, find_frequent, reply_indices
from data_prep.corpus.near_duplicates import HASHES, near_duplicates, signatures
from data_prep.settings import FrequencySettings
from data_prep.stages.arrow_files import turn_hash

ALL = {GENERIC, COPIES, HOT}
FEW = FrequencySettings(0.1, 0.02, 0.02, least=5)
ADVERTISEMENT = "这个牌子的面膜真的特别好用，姐妹们快去看看吧"
HOT_POST = "今天我们公布一个好消息，大家猜猜看是什么呢"


def arrays(dialogues: list[list[str]]) -> tuple[np.ndarray, np.ndarray]:
    hashes = [turn_hash(turn) for turns in dialogues for turn in turns]
    return np.array(hashes, np.uint64), np.cumsum([0, *map(len, dialogues)])


def losses(dialogues, settings=FEW, on=ALL) -> dict[str, int]:
    parts = [arrays(dialogues[: len(dialogues) // 2]), arrays(dialogues[len(dialogues) // 2 :])]
    frequent = find_frequent(parts, settings, on, top=5)
    reasons = [
        REASONS[reason] for turns, starts in parts for reason in frequent.find_dirty(turns, starts) if reason >= 0
    ]
    return {reason: reasons.count(reason) for reason in set(reasons)}


def corpus() -> list[list[str]]:
    """300 ordinary pairs, a generic reply to 100 turns, an advertisement under 30, a post with 40 answers."""
    return [
        *([f"问题{number}", f"这是第{number}个问题的回答"] for number in range(300)),
        *([f"说法{number}", "哈哈"] for number in range(100)),
        *([f"帖子{number}", ADVERTISEMENT] for number in range(30)),
        *([HOT_POST, f"我猜{number}"] for number in range(40)),
    ]


def test_generic_replies_are_thinned_out_advertisements_removed_hot_posts_limited():
    counts = losses(corpus())
    assert counts[COPIES] == 30
    assert 35 <= 100 - counts[GENERIC] <= 60  # 10 % of 470 replies may be the same
    assert 3 <= 40 - counts[HOT] <= 20  # 2 % of 470 may answer the same turn
    assert set(counts) == ALL


@pytest.mark.parametrize("on", [set(), {GENERIC}, {COPIES, HOT}])
def test_each_is_switched_alone(on):
    assert set(losses(corpus(), on=on)) == on


def test_thresholds_are_shares_of_the_corpus_and_never_below_the_least():
    large_corpus = [*corpus(), *([f"另外{number}", f"另一个回答{number}"] for number in range(5000))]
    assert losses(large_corpus) == {}
    assert losses(corpus()[-45:-25], FrequencySettings()) == {}


def test_copies_of_one_dialogue_are_not_a_frequent_reply():
    assert losses([*corpus()[:300], *[["同一个问题", "哈哈"]] * 200]) == {}


def test_which_replies_are_kept_depends_on_their_content_alone():
    def removed(dialogues):
        turns, starts = arrays(dialogues)
        dirty = find_frequent([(turns, starts)], FEW, ALL, 5).find_dirty(turns, starts)
        return {
            tuple(dialogues[int(np.searchsorted(starts, index, "right")) - 1]) for index in np.flatnonzero(dirty >= 0)
        }

    dialogues = corpus()
    assert removed(dialogues) == removed(dialogues[::-1])


@given(st.lists(st.integers(0, 5), max_size=12))
def test_reply_indices_are_all_but_first_turns(lengths):
    starts = np.cumsum([0, *lengths])
    expected = [
        int(start) + index for start, length in zip(starts, lengths, strict=False) for index in range(1, length)
    ]
    assert reply_indices(starts).tolist() == expected


def jaccard(left: list[str], right: list[str]) -> float:
    a, b = (
        {text[at : at + 3] for at in range(len(text) - 2)} for text in ("\n".join(turns) for turns in (left, right))
    )
    return len(a & b) / len(a | b)


TURN = st.text(alphabet="你好吗我们去哪里吃什么", min_size=4, max_size=30)


@given(st.lists(TURN, min_size=2, max_size=3), st.integers(0, 20), st.data())
@settings(deadline=None, max_examples=60)
def test_equal_places_of_signatures_estimate_the_jaccard_similarity(turns, cut, data):
    other = [turns[0][:cut] + data.draw(TURN) + turns[0][cut:], *turns[1:]]
    left, right = signatures([turns, other])
    assert abs((left == right).mean() - jaccard(turns, other)) < 0.3  # 4.8 standard errors


def test_the_estimate_is_right_on_average():
    random = np.random.default_rng(0)
    alphabet = np.array([*map(chr, range(0x4E00, 0x4F00))])
    errors = []
    for _ in range(300):
        base = random.choice(alphabet, 60)
        other = base.copy()
        other[random.integers(0, 60, random.integers(1, 10))] = "变"
        pair = ["".join(base), "好"], ["".join(other), "好"]
        left, right = signatures(pair)
        errors.append((left == right).mean() - jaccard(*pair))
    assert abs(np.mean(errors)) < 0.01
    assert np.std(errors) < 0.08


def test_a_short_dialogue_has_a_signature_too():
    assert signatures([["a", ""], ["b"]]).shape == (2, HASHES)
    assert signatures([]).shape == (0, HASHES)


@pytest.mark.parametrize(("held_out_only", "expected"), [(False, [0, 0, 1, 1, 0]), (True, [0, 0, 1, 0, 0])])
def test_near_rows_are_removed_and_held_out_ones_kept(held_out_only, expected):
    base = "昨天我和朋友一起去看了那部新上映的电影，真的特别好看"
    second = "周末打算带孩子去动物园玩一整天，听说来了两只大熊猫"
    dialogues = [
        [base, "是吗"],
        [second, "好"],
        [base + "呢", "是吗"],
        [second + "啊", "好"],
        ["完全不同的一句话", "是"],
    ]
    rank = np.array([0, 2, 2, 2, 2])
    is_removed = near_duplicates(signatures(dialogues), rank, 0.8, held_out_only)
    assert is_removed.astype(int).tolist() == expected
