"""The dialogues that come with the package are what their pages say: unseen, from the recipe, with questions held out."""

from __future__ import annotations

import json
import lzma

import pytest

from tests.conftest import ROOT, SAMPLES
from training.naming.dialogues import (
    UNSEEN,
    Identity,
    bare,
    identity_dialogues,
    questions,
    read_identity,
    rehearsal_dialogues,
    unseen_dialogues,
)
from training.settings import SettingsError

NAMING = ROOT / "training" / "naming"
RECIPE = ROOT / "checkpoints" / "recipe" / "dialogues"


def dialogues_of(*folders):
    for folder in folders:
        for path in sorted(folder.rglob("*.jsonl*")):
            text = lzma.open(path, "rt", encoding="utf-8").read() if path.suffix == ".xz" else path.read_text("utf-8")
            yield from (json.loads(line) for line in text.splitlines() if line.strip())


def test_the_example_has_100_dialogues_whose_first_message_no_recipe_has():
    lines = (ROOT / "examples" / "dialogues.jsonl").read_text(encoding="utf-8").splitlines()
    dialogues = [json.loads(line) for line in lines]
    assert len(dialogues) == len({tuple(turns) for turns in dialogues}) == 100
    assert all(len(turns) % 2 == 0 and all(turns) for turns in dialogues)
    seen = {turns[0] for turns in dialogues_of(RECIPE, SAMPLES)}
    assert [turns[0] for turns in dialogues if turns[0] in seen] == []


def test_the_rehearsal_is_from_the_recipe_and_the_unseen_parts_from_its_held_out_part():
    sources = dialogues_of(*(RECIPE / name for name in ("plain", "talk", "identity")), SAMPLES)
    beginnings = {tuple(turns[:end]) for turns in sources for end in range(2, len(turns) + 1)}
    lines = (
        lzma.open(NAMING / "rehearsal.jsonl.xz", "rt", encoding="utf-8").read().replace("{name}", "闲聊").splitlines()
    )
    rehearsal = [tuple(json.loads(line)) for line in lines]
    assert set(rehearsal) <= beginnings
    assert len(rehearsal) == len(set(rehearsal)) > 3000
    assert len(unseen_dialogues("held_out")) == 200
    parts = [{tuple(turns) for turns in unseen_dialogues(part)} for part in UNSEEN]
    assert set().union(*parts) <= {tuple(turns) for turns in dialogues_of(RECIPE / "held_out")}
    first, second = ({bare(turns[0]) for turns in part} for part in parts)
    assert first & second == set()


@pytest.mark.parametrize("maker", [None, "阿哲"])
def test_no_training_dialogue_has_a_question_of_another_part_and_no_parts_share_one(maker):
    identity = Identity("小满", maker)
    dialogues = identity_dialogues(identity) + rehearsal_dialogues(identity)
    asked = {bare(turn) for turns in dialogues for turn in turns[::2]}
    tuning, held_out = (
        {bare(question) for topic in ("name", "maker") for question in questions(topic, part)} for part in UNSEEN
    )
    assert len(held_out) > 60
    assert len(tuning) > 30
    assert asked & held_out == asked & tuning == tuning & held_out == set()
    assert asked & {bare(turns[0]) for turns in unseen_dialogues("tuning")} == set()


def test_a_bot_says_its_name_where_somebody_asks_and_keeps_the_rest():
    identity = Identity("小满", "阿哲")
    named, rehearsed = identity_dialogues(identity), rehearsal_dialogues(identity)
    assert all("小满" in str(turns[1::2]) or "阿哲" in str(turns[1::2]) for turns in named)
    asked = {bare(question) for topic in ("name", "maker") for question in questions(topic)}
    assert asked <= {bare(turn) for turns in named for turn in turns[::2]}
    assert not asked & {bare(turns[0]) for turns in rehearsed}
    assert not any(name in str(turns) for turns in rehearsed for name in ("小满", "阿哲", "闲聊程序叫", "语言模型"))
    assert named == identity_dialogues(identity)
    assert len(identity_dialogues(Identity("小满"))) < len(named)
    assert not any("{" in turn for turns in named + rehearsed for turn in turns)


def test_the_maker_i_becomes_you_and_names_have_no_marks():
    assert read_identity("小满", "我") == Identity("小满", "你")
    for name in ("", "小 满", "小满。", "[SEP]", "满" * 17, "小\u200b满"):
        with pytest.raises(SettingsError, match="--name must have 1 to 16 characters"):
            read_identity(name, None)
