"""No text around a phrase hides it, and no text breaks the search for phrases."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.safety import Phrases, Safety, phrases
from chatbot.safety.classifier import SIDE_LETTERS, surroundings
from chatbot.safety.folding import fold
from chatbot.text.word_lists import read_word_list
from tests.conftest import ROOT

CLEAR = ("我想自杀", "我不想活了", "我要去死", "我想跳楼", "我写好遗书了", "我想死", "我割腕了", "不如死了算了")
PROBES = ROOT / "chatbot" / "evaluation" / "probes"
HARMLESS = read_word_list(PROBES / "harmless_dev.txt")


@pytest.fixture(scope="module")
def safety():
    return Safety.load()


@pytest.mark.parametrize("separator", ["，", "。", "\n"])
def test_a_harmless_context_hides_no_clear_sentence(safety, separator):
    for number, harmless in enumerate(HARMLESS):
        clear = CLEAR[number % len(CLEAR)]
        for message in (harmless + separator + clear, clear + separator + harmless):
            assert safety.answer([message]) is not None, message


def test_letters_around_a_phrase_that_are_scored_end_with_its_clause():
    message = fold("今天天气真好，我昨天说过我想自杀这件事情了吧。哈哈")
    around = surroundings(message, Phrases(["自杀"]).places("", message))
    assert around == ["说过我想自杀这件事情"]
    assert SIDE_LETTERS == 4
    assert surroundings(fold("好，自杀！好"), Phrases(["自杀"]).places("好，自杀！好")) == ["自杀"]


def test_a_harmless_phrase_does_not_end_inside_the_next_clause(safety):
    assert safety.answer(["我要去死，海子是哪年出生的"]) is not None
    assert safety.answer(["想去死海漂浮"]) is None


TEXTS = st.lists(st.sampled_from(["自", "杀", "自杀", "想死", "é", "\U00020000", "a", "，", "天"]), max_size=40).map(
    "".join
)


@given(TEXTS)
def test_a_text_is_searched_in_pieces_as_in_one(text):
    """Continuing a search in a piece with wider characters damaged memory and ended the process."""
    listed = Phrases(["自杀", "想死*自杀", "天(自杀|)想死"])
    whole = listed.places(text)
    size, phrases.PIECE_LETTERS = phrases.PIECE_LETTERS, 3
    try:
        assert listed.places(text) == whole
    finally:
        phrases.PIECE_LETTERS = size
