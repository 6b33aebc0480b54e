"""The dialogues that ship with the project."""

from __future__ import annotations

from collections import Counter


def test_there_are_enough_and_each_is_its_own(dialogues):
    assert len(dialogues) >= 200
    assert all(4 <= len(turns) <= 10 for turns in dialogues)
    assert len({turns[0] for turns in dialogues}) == len(dialogues)
    assert len({tuple(turns) for turns in dialogues}) == len(dialogues)


def test_turns_are_clean_and_rarely_repeat(dialogues):
    turns = [turn for dialogue in dialogues for turn in dialogue]
    assert all(turn and turn.strip() == turn for turn in turns)
    assert all(len(turn) <= 60 for turn in turns)
    long = Counter(turn for turn in turns if len(turn) >= 8)
    assert max(long.values()) == 1


def test_the_bot_says_what_it_is(dialogues):
    honest = [turns for turns in dialogues if any("程序" in turn for turn in turns[1::2])]
    assert len(honest) >= 8
