"""The dialogues that come with the package are what their pages say: unseen, from the recipe, with questions held out."""

from __future__ import annotations

import json
import lzma

import pytest

from tests.conftest import ROOT, SAMPLES
from training.naming.dialogues import (
    Identity,
    bare,
    held_out_dialogues,
    identity_dialogues,
    questions,
    read_identity,
    rehearsal_dialogues,
)
from training.settings import SettingsError

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


def test_the_rehearsal_is_from_the_recipe_and_the_held_out_part_from_its_held_out_part():
    trained = {tuple(turns) for name in ("plain", "talk", "identity") for turns in dialogues_of(RECIPE / name)}
    held = {tuple(turns) for turns in dialogues_of(RECIPE / "held_out")}
    assert {tuple(turns) for turns in rehearsal_dialogues(Identity("闲聊"))} <= trained
    assert len(held_out_dialogues()) == 200
    assert {tuple(turns) for turns in held_out_dialogues()} <= held


@pytest.mark.parametrize("maker", [None, "阿哲"])
def test_no_training_dialogue_has_a_held_out_question(maker):
    identity = Identity("小满", maker)
    dialogues = identity_dialogues(identity) + rehearsal_dialogues(identity)
    asked = {bare(turn) for turns in dialogues for turn in turns[::2]}
    held = {bare(question) for about in ("name", "maker") for question in questions(about, held_out=True)}
    assert len(held) > 60
    assert asked & held == set()


def test_a_bot_says_its_name_only_where_somebody_asks():
    identity = Identity("小满", "阿哲")
    dialogues = identity_dialogues(identity)
    asked = {bare(question) for about in ("name", "maker") for question in questions(about)}
    for turns in dialogues:
        is_asked = bare(turns[-2]) in asked
        assert is_asked == ("小满" in turns[-1] or "阿哲" in turns[-1]), turns
        assert not any("小满" in turn for turn in turns[:-1])
    assert dialogues == identity_dialogues(identity)
    assert len(identity_dialogues(Identity("小满"))) < len(dialogues)
    assert not any("{" in turn for turns in dialogues for turn in turns)


def test_the_maker_i_becomes_you_and_names_have_no_marks():
    assert read_identity("小满", "我") == Identity("小满", "你")
    for name in ("", "小 满", "小满。", "[SEP]", "满" * 17, "小\u200b满"):
        with pytest.raises(SettingsError, match="--name must have 1 to 16 characters"):
            read_identity(name, None)
