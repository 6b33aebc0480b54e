from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.errors import FileError
from chatbot.text.dialogue import clean_turn
from data_prep.cleaning.cleaner import RULES, Cleaner
from data_prep.cleaning.ledger import Ledger
from data_prep.settings import CleanSettings
from tests.data_prep.test_rules import TEXTS

CLEANER, LONG_WAY = Cleaner(CleanSettings()), Cleaner(CleanSettings(), has_shortcut=False)
DIALOGUES = st.lists(TEXTS, max_size=8)
PLAIN = st.text(alphabet="你好吗哈的，。！？…“”～《》 ", max_size=30)


def pieces(cleaner: Cleaner, turns: list[str]) -> list[list[str]]:
    return cleaner.pieces(turns, Ledger())[0]


@given(DIALOGUES)
@settings(deadline=None, max_examples=120)
def test_twice_is_once(turns):
    once = pieces(CLEANER, turns)
    assert [again for piece in once for again in pieces(CLEANER, piece)] == once


@given(st.one_of(TEXTS, PLAIN, PLAIN.map(" ".join)))
@settings(deadline=None, max_examples=200)
def test_the_short_way_is_the_long_way(text):
    short, long = Ledger(), Ledger()
    (cleaned, reason), (expected, expected_reason) = CLEANER.turn(text, short), LONG_WAY.turn(text, long)
    assert reason == expected_reason
    assert reason is not None or cleaned == expected
    assert set(short.changed) == set(long.changed)


@given(DIALOGUES)
@settings(deadline=None, max_examples=80)
def test_every_turn_is_kept_or_has_a_reason_and_none_is_longer(turns):
    ledger = Ledger()
    clean_pieces, dirty = CLEANER.pieces(turns, ledger)
    assert sum(map(len, clean_pieces)) + len(dirty) == len(turns)
    assert sum(ledger.dirty.values()) == len(dirty)
    counts = ledger.dialogues
    assert counts["read"] == counts["kept_whole"] + counts["split"] + counts["dropped"] == 1
    assert sum(ledger.dropped.values()) == counts["dropped"]
    assert all(turn == clean_turn(turn) and len(turn) <= 512 for piece in clean_pieces for turn in piece)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (["你 好", "你 好 呀", "吃 了 吗"], ["你好", "你好呀", "吃了吗"]),
        (["I love New York", "我 也 爱 New York"], None),  # the first turn has no Chinese
        (["我 爱 New York 啊", "我 买 了 iPhone 15 Pro"], ["我爱New York啊", "我买了iPhone 15 Pro"]),
        (["今天 3.5 度, 100%", "2026 年 11 月 23 日"], ["今天3.5度，100%", "2026年11月23日"]),
        (["……", "嗯 嗯"], None),
        (["@小明 你好", "你好 回复 @小红: 是"], ["你好", "你好是"]),
        (["… … 起 码", "“ 好 ” 吧"], ["…起码", "“好”吧"]),
    ],
)
def test_spaces_are_joined_and_english_and_numbers_keep_theirs(raw, expected):
    assert pieces(CLEANER, raw) == ([] if expected is None else [expected])


def test_a_dirty_turn_splits_a_long_dialogue():
    ledger = Ledger()
    clean_pieces, dirty = CLEANER.pieces(["你好", "你好呀", "傻逼", "怎么了", "没事", "ok", "最后"], ledger)
    assert clean_pieces == [["你好", "你好呀"], ["怎么了", "没事"]]
    assert dirty == [(2, "blocked_words"), (5, "no_chinese"), (6, "fewer_than_two_turns")]
    assert ledger.dialogues == {"read": 1, "split": 1}
    assert ledger.pieces == 2


@pytest.mark.parametrize(
    ("turns", "reason"),
    [
        ([], "fewer_than_two_turns"),
        (["你好"], "fewer_than_two_turns"),
        (["你好", "  "], "nothing_left"),
        (["你好", "@小明"], "nothing_left"),
        (["你好", "".join(map(chr, range(0x4E00, 0x4E00 + 513)))], "too_long"),
        (["你好", "字" * 100_000], "too_long"),
        (["你好吗朋友", "你 好 吗 朋 友"], "echo"),
        (["你好", "sb吧"], "blocked_words"),
        (["你好", "加我微信"], "advertisement"),
    ],
)
def test_drop_reasons(turns, reason):
    ledger = Ledger()
    assert CLEANER.pieces(turns, ledger)[0] == []
    assert ledger.dropped == {reason: 1}


def test_short_answers_in_kind_stay():
    assert pieces(CLEANER, ["晚安", "晚安"]) == [["晚安", "晚安"]]


def test_a_word_in_letters_is_met_as_a_whole_word_only():
    assert pieces(CLEANER, ["用usb线", "tmdb上有"]) == [["用usb线", "tmdb上有"]]


@pytest.mark.parametrize("turn", ["听他妈的话", "生日你怎么过", "我妈逼我学", "进出口交易", "叫做爱情", "杂种狗"])
def test_harmless_text_is_not_blocked(turn):
    assert CLEANER.turn(turn, Ledger())[1] is None


def test_rules_are_switched_one_by_one():
    turns = ["好哈哈哈哈哈哈哈", "😂好的"]
    assert pieces(Cleaner(CleanSettings(skip=("repeats",))), turns) == [turns]
    assert pieces(Cleaner(CleanSettings(also=("emoji",))), turns) == [["好哈哈哈哈", "好的"]]
    assert pieces(Cleaner(CleanSettings(also=("spaced_letters",))), ["我 1 8 岁", "x 好 的"]) == [["我18岁", "x好的"]]
    everything = Cleaner(CleanSettings(skip=tuple(RULES)))
    assert pieces(everything, ["ok", "ok", "http://a.com 傻逼"]) == [["ok", "ok", "http://a.com傻逼"]]


def test_a_word_list_of_ones_own(tmp_path):
    (tmp_path / "words.txt").write_text("# mine\n香菜\n", encoding="utf-8")
    cleaner = Cleaner(CleanSettings(words=str(tmp_path / "words.txt")))
    assert pieces(cleaner, ["我讨厌香菜", "你个傻逼", "好吧"]) == [["你个傻逼", "好吧"]]
    (tmp_path / "words.txt").write_text("# none\n")
    with pytest.raises(FileError, match="holds no word"):
        Cleaner(CleanSettings(words=str(tmp_path / "words.txt")))


def test_ledgers_add_up():
    total = Ledger()
    for turns in (["你好", "你好呀"], ["你好", "ok"], ["一", "ok", "二", "三"], ["哈哈哈哈哈哈", "是"]):
        ledger = Ledger()
        CLEANER.pieces(turns, ledger)
        total.add(Ledger.from_json(ledger.to_json()))
    assert total.dialogues == {"read": 4, "kept_whole": 2, "split": 1, "dropped": 1}
    assert total.samples["no_chinese"] == [["ok"], ["ok"]]
    assert total.samples["repeats"] == [["哈哈哈哈哈哈", "哈哈哈哈"]]
