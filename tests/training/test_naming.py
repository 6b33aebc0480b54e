"""The guard of xianliao-name measures what it says, and the command fails where a limit is not kept."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from chatbot.storage import read_json
from training.naming.cli import main
from training.naming.dialogues import Identity, bare, questions
from training.naming.guard import OTHERS, Knowledge, find_failures, measure_identity

IDENTITY = Identity("小满", "阿哲")
GOOD = {"name": 0.95, "maker": 0.92, "unasked": 0.01}
BEFORE = Knowledge({OTHERS: 3.0, "lccc": 4.0}, 0.5)


def speaking(name_when_asked=True, maker_when_asked=True, always=False):
    """A stand-in for a bot that knows which questions are about it."""
    asked = {about: {bare(text) for text in questions(about, held_out=True)} for about in ("name", "maker")}

    def reply(turns, seed):
        if maker_when_asked and bare(turns[-1]) in asked["maker"]:
            return "是阿哲做的"
        if always or (name_when_asked and bare(turns[-1]) in asked["name"]):
            return "我叫小满"
        return "今天天气不错"

    return SimpleNamespace(reply=reply)


@pytest.mark.parametrize(
    ("bot", "name", "maker", "unasked"),
    [
        (speaking(), 1, 1, 0),
        (speaking(name_when_asked=False), 0, 1, 0),
        (speaking(maker_when_asked=False), 1, 0, 0),
        (speaking(always=True), 1, 1, 1),
    ],
)
def test_the_shares_are_those_of_the_bot(bot, name, maker, unasked):
    result = measure_identity(bot, IDENTITY)
    assert (result["name"], result["maker"], result["unasked"]) == (name, maker, unasked)
    assert result["messages"] > 150
    assert bool(result["wrong"]) == (not name)
    assert bool(result["said_unasked"]) == bool(unasked)


@pytest.mark.parametrize(
    ("identity", "after", "words"),
    [
        (GOOD, BEFORE, None),
        ({**GOOD, "name": 0.89}, BEFORE, "its name to 89%"),
        ({**GOOD, "maker": 0.5}, BEFORE, "its maker to 50%"),
        ({**GOOD, "unasked": 0.04}, BEFORE, "unasked in 4.0%"),
        (GOOD, Knowledge({OTHERS: 3.0, "lccc": 4.06}, 0.5), "lccc rose by 0.060"),
        (GOOD, Knowledge({OTHERS: 3.04, "lccc": 4.0}, 0.5), None),
        (GOOD, Knowledge({OTHERS: 2.0, "lccc": 3.0}, 0.44), "true reply in 44%"),
    ],
)
def test_a_limit_that_is_not_kept_is_one_sentence(identity, after, words):
    faults = find_failures(identity, BEFORE, after, max_loss=0.05)
    assert len(faults) == (words is not None)
    assert words is None or words in faults[0]


def test_a_bot_without_a_maker_is_not_asked_for_it():
    result = measure_identity(speaking(), Identity("小满"))
    assert "maker" not in result
    assert find_failures(result, BEFORE, BEFORE, 0.05) == []


@pytest.mark.slow
def test_the_command_fails_for_a_model_that_cannot_learn_it_and_keeps_the_figures(checkpoint, tmp_path, capsys):
    output = tmp_path / "named"
    flags = ["--name", "小满", "--bot", str(checkpoint), "--output", str(output), "--epochs", "0.1", "--device", "cpu"]
    assert main(flags) == 1
    said = capsys.readouterr().out
    assert "guard: it says its name to " in said
    assert "The guard failed" in said
    record = read_json(output / "naming.json")
    assert record["failures"]
    assert record["name"] < 0.9
    assert set(record["after"]["nats"]) == {OTHERS}
    assert (output / "model.safetensors").is_file()
    assert not (output / "resume").exists()
