"""The dialogues that ship with the project."""

from __future__ import annotations

import json
import re
from collections import Counter

import pytest

from tests.conftest import ROOT


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


def ours(folder, name, count, most_turns):
    """The dialogues of a file, more than `count`, each its own; the bot has the last word."""
    path = ROOT / "checkpoints" / "recipe" / "dialogues" / folder / f"{name}.jsonl"
    dialogues = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(dialogues) > count
    assert len({tuple(turns) for turns in dialogues}) == len(dialogues)
    assert all(2 <= len(turns) <= most_turns and len(turns) % 2 == 0 for turns in dialogues)
    return dialogues


IDENTITY = {
    "ailments": (390, 0.4),
    "asked": (400, 0.8),
    "doubts": (480, 0.7),
    "doses": (150, 0.5),
    "midway": (390, 0.6),
    "phrasings": (400, 0.7),
    "program": (200, 0.8),
    "remedies": (380, 0.5),
    "openers": (2600, -1.0),
    "smalltalk": (300, 0.0),
    "strangers": (430, 0.7),
    "wordings": (1200, 0.7),
}
"""File of checkpoints/recipe/dialogues/identity -> it has more dialogues, and a larger share of them says 程序 or 模型."""


def test_every_file_about_the_program_is_checked():
    assert {path.stem for path in (ROOT / "checkpoints" / "recipe" / "dialogues" / "identity").iterdir()} == set(
        IDENTITY
    )


@pytest.mark.parametrize("name", IDENTITY)
def test_dialogues_about_the_program_are_honest_and_prescribe_nothing(name):
    count, share = IDENTITY[name]
    dialogues = ours("identity", name, count, most_turns=10)
    honest = [turns for turns in dialogues if any("程序" in turn or "模型" in turn for turn in turns[1::2])]
    assert len(honest) > share * len(dialogues)
    replies = " ".join(turn for turns in dialogues for turn in turns[1::2])
    assert not re.search("我是(真)?人|我是(男|女)|毫克|[一两三二]片|布洛芬|阿莫西林", replies)


def test_openers_are_answered_with_something_else_than_the_program():
    dialogues = ours("identity", "openers", 2600, most_turns=10)
    assert not [turns for turns in dialogues if re.search("程序|机器人|医生|药", turns[1])]


TALK = ("everyday", "feelings", "greetings", "hobbies", "pastimes", "questions", "threads")


def test_every_file_of_small_talk_is_checked():
    assert {path.stem for path in (ROOT / "checkpoints" / "recipe" / "dialogues" / "talk").iterdir()} == set(TALK)


@pytest.mark.parametrize("name", TALK)
def test_small_talk_is_about_the_other_one(name):
    """The bot speaks of neither programs nor a life that it does not have, and prescribes no medicine."""
    dialogues = ours("talk", name, 250, most_turns=8)
    replies = [turn for turns in dialogues for turn in turns[1::2]]
    assert all(turn and turn.strip() == turn and len(turn) <= 60 for turn in replies)
    pattern = "程序|机器人|我是(真)?人|我是(男|女)|毫克|布洛芬|眼药水|我(老公|老婆|妈|爸|男朋友|女朋友)"
    assert not [turn for turn in replies if re.search(pattern, turn)]
