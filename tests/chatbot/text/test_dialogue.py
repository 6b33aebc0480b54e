from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chatbot.text.dialogue import RESERVE, DialogueError, clean_turn, count_units, fit, join_spaces
from chatbot.text.layouts import IGNORED_LABEL, DialogptLayout


class Ids:
    cls_id, sep_id = 1, 2


LAYOUT = DialogptLayout(Ids())


def test_layout_of_a_dialogue():
    sample = LAYOUT.lay_out([[10, 11], [12], []])
    assert sample.input_ids == [1, 10, 11, 2, 12, 2, 2]
    assert sample.speaker_ids == [0, 0, 0, 0, 1, 1, 0]  # [SEP] belongs to the turn it closes
    assert sample.labels == [IGNORED_LABEL, 10, 11, 2, 12, 2, 2]  # every turn and every [SEP] carries loss


def test_speakers_follow_the_absolute_turn_index():
    assert LAYOUT.lay_out([[10], [11]], first_turn=3).speaker_ids == [1, 1, 1, 0, 0]


def test_prompt_is_the_layout_up_to_the_reply():
    turns = [[10], [11, 12], [13]]
    prompt = LAYOUT.prompt(turns, context_tokens=100)
    sample = LAYOUT.lay_out(turns)
    assert (prompt.input_ids, prompt.speaker_ids) == (sample.input_ids, sample.speaker_ids)
    assert prompt.reply_speaker == 1 - prompt.speaker_ids[-1] == 1
    assert len(prompt.pieces) == 3


def test_prompt_after_dropping_keeps_parity():
    turns = [[10] * 5, [11] * 5, [12] * 5, [13] * 5, [14] * 5]
    prompt = LAYOUT.prompt(turns, context_tokens=26)
    assert prompt.first_turn == 2
    assert prompt.input_ids == [1, *[12] * 5, 2, *[13] * 5, 2, *[14] * 5, 2]
    assert prompt.speaker_ids == [0] * 7 + [1] * 6 + [0] * 6
    assert prompt.reply_speaker == 1


def test_empty_prompt_is_refused():
    with pytest.raises(DialogueError, match="at least one turn"):
        LAYOUT.prompt([], 100)


@given(st.lists(st.integers(0, 30), min_size=1, max_size=60), st.integers(4, 100))
def test_fit_bounds_the_history_and_only_drops_on_overflow(lengths, context):
    def total(first):
        return 1 + sum(length + 1 for length in lengths[first:])

    first = fit(lengths, context)
    assert total(first) <= context or first == len(lengths) - 1
    before = fit(lengths[:-1], context)
    assert first >= before  # what is dropped stays dropped
    if total(before) - lengths[-1] - 1 <= context - context // RESERVE and total(before) <= context:
        assert first == before  # so the state of the turn before can be carried along
    elif first < len(lengths) - 2:  # a turn that was the newest is kept, even if it alone is longer than half
        assert total(first) - lengths[-1] - 1 <= context // 2


@given(st.lists(st.integers(0, 30), max_size=60), st.integers(0, 60), st.integers(RESERVE, 100))
def test_what_is_dropped_does_not_depend_on_a_message_that_fits(history, message, context):
    known = fit([*history, 0], context)
    if 1 + sum(length + 1 for length in history[known:]) + message + 1 <= context:
        assert fit([*history, message], context) == known
    if history and known < len(history) and sum(history[known:]) < context // 3:
        assert fit([*history, context // RESERVE - 1], context) == known


@pytest.mark.parametrize(
    ("spaced", "joined"),
    [
        ("你 好 ， 世 界", "你好，世界"),
        ("我 爱 New York 啊", "我爱New York啊"),
        ("花 了 3 1 万", "花了3 1万"),
        ("hello world", "hello world"),
        ("ok ！ 走", "ok！走"),
        ("  ", "  "),
        ("", ""),
    ],
)
def test_spaces_are_dropped_only_beside_chinese(spaced, joined):
    assert join_spaces(spaced) == joined


@given(st.text())
def test_cleaning_is_idempotent_and_never_lengthens(text):
    assert clean_turn(clean_turn(text)) == clean_turn(text)
    assert len(clean_turn(text)) <= len(text)


def test_units_are_code_points_and_ends_of_turn():
    assert count_units(["你 好", "hi there"]) == 2 + 1 + 8 + 1
    assert count_units(["👍"]) == 1 + 1
    assert count_units(["👍🏻"]) == 2 + 1  # a thumb and a skin tone
    assert count_units(["👨‍👩‍👧"]) == 5 + 1  # three people and two joiners
    assert count_units(["你\u3000好"]) == 3 + 1  # a full-width space counts, unlike a space beside Chinese


def test_spaces_cost_linear_time():
    """A run of spaces between Latin letters is searched once, not from each of its spaces."""
    import time

    started = time.process_time()
    assert join_spaces("a" + " " * 200_000 + "b") == "a" + " " * 200_000 + "b"
    assert join_spaces("你" + " " * 200_000 + "b   好 好") == "你b好好"
    assert time.process_time() - started < 1
