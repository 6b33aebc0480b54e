"""What people type, in the form of the training data; and the characters that a reply may have."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from chatbot.text.characters import is_readable, script_of, simplified, traditional, typed_text
from data_prep.cleaning.cleaner import CleanSettings

TEXTS = st.text(
    st.one_of(st.sampled_from("你好著的ab１Ａ　\u200b\xa0\ufeff\u200d\ufe0f❤👩\n\t\x00\ue000"), st.characters()),
    max_size=30,
)


@pytest.mark.parametrize(
    "text", ["你好\u200b吗", "你好\u3000吗", "你好\u00a0吗", "\ufeff你好吗\x00", " 你\u2060好吗\r\n", "你好\ue000吗"]
)
def test_invisible_characters_do_not_count(text):
    assert typed_text(text) == "你好吗"


@pytest.mark.parametrize(
    ("text", "read"),
    [
        ("ＡＢＣ１２３", "ABC123"),
        ("New　York，１月", "New York，1月"),
        ("好！？，。", "好！？，。"),
        ("👨\u200d👩\u200d👧 ❤\ufe0f", "👨\u200d👩\u200d👧 ❤\ufe0f"),
        ("\u200b\u200d\ufeff\u3000\ufe0f", ""),
        ("在吗\n在吗", "在吗在吗"),
    ],
)
def test_forms_of_one_text(text, read):
    assert typed_text(text) == read


def test_lines_are_kept_for_models_that_know_them():
    assert typed_text("第一\u200b行　\r\n  ２\n", keep_lines=True) == "第一行\n2"


@given(TEXTS)
@settings(deadline=None, max_examples=200)
def test_reading_twice_is_reading_once(text):
    for keep_lines in (False, True):
        once = typed_text(text, keep_lines)
        assert typed_text(once, keep_lines) == once
        assert len(once) <= len(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("聽說你會講笑話", "听说你会讲笑话"),
        ("頭髮掉了怎麼辦", "头发掉了怎么办"),
        ("我看著你", "我看着你"),
        ("他睡著了", "他睡着了"),
        ("看著書，想著那本名著", "看着书，想着那本名著"),
        ("她是著名的人", "她是著名的人"),
        ("显著、原著、著作、土著", "显著、原著、著作、土著"),
        ("執著", "执着"),
        ("妳好", "你好"),
        ("后来皇后干杯", "后来皇后干杯"),
        ("abc", "abc"),
    ],
)
def test_traditional_is_read_as_simplified(text, expected):
    assert simplified(text) == expected
    assert simplified(expected) == expected


def test_the_script_of_a_text():
    assert script_of("聽說你會") == "traditional"
    assert script_of("听说你会") == "simplified"
    assert script_of("你好") is None
    assert script_of("hello") is None
    assert traditional("头发和发现") == "頭髮和發現"


@pytest.mark.parametrize(
    "character", ["\x00", "\x1a", "\n", "\x7f", "\x85", "\u200b", "\u202e", "\ue000", "\ufffd", "\uffff", "\u0378"]
)
def test_unreadable_characters(character):
    assert not is_readable(character)


@pytest.mark.parametrize("character", [*"你aé，。 😀\u200d\ufe0fñ한こ𠮷"])
def test_readable_characters(character):
    assert is_readable(character)


def test_chat_reads_a_text_as_preparation_cleans_it():
    """The rules that chat applies, alone, in the cleaner."""
    from data_prep.cleaning.cleaner import Cleaner
    from data_prep.cleaning.ledger import Ledger
    from data_prep.cleaning.rules import FILTERS, NORMALISERS

    off = {rule.name for rule in (*NORMALISERS, *FILTERS)} - {"control_characters", "full_width"}
    cleaner = Cleaner(CleanSettings(skip=tuple(sorted(off))))
    for text in ("你好\u200b吗", "今天\u3000Ａ１\u00a0好", "a\tb c", "👨\u200d👩 好"):
        assert cleaner.turn(text, Ledger())[0] == typed_text(text)
