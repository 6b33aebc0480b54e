"""Likeness compares the person's turns with the others', and says when there is no sign of it."""

from __future__ import annotations

import json

import numpy as np
import pytest

from training.likeness.cli import _lines, main
from training.likeness.measure import Costs, gain, measure_costs, style_of


def costs(others, person, count=40):
    nats = np.tile([[others, person]], (count, 1)).astype(float)
    return Costs(nats, np.full((count, 2), 10.0))


def test_the_gain_is_that_of_the_person_beyond_the_others():
    before, after = costs(40, 42), costs(38, 35)
    assert before.per_unit() == pytest.approx((4.0, 4.2))
    result = gain(before, after)
    assert result["more"] == pytest.approx(0.5)
    assert result["interval"] == pytest.approx((0.5, 0.5))
    assert gain(before, costs(33, 35))["more"] == pytest.approx(0.0)  # only the subject was learnt


def test_the_interval_knows_how_few_the_dialogues_are():
    random = np.random.default_rng(1)
    before = Costs(np.full((8, 2), 40.0), np.full((8, 2), 10.0))
    after = Costs(before.nats - random.normal(0, 5, (8, 2)), before.units)
    low, high = gain(before, after)["interval"]
    assert low < gain(before, after)["more"] < high
    assert high - low > 0.2


def test_costs_are_split_by_speaker(bot):
    turns = ["你好", "你好呀", "今天吃什么", "面条"]
    result = measure_costs(bot, [turns])
    assert result.units.tolist() == [[9, 7]]  # characters and one end for each turn
    swapped = measure_costs(bot, [turns[:2]])
    assert swapped.units.tolist() == [[3, 4]]
    assert result.nats[0, 0] > swapped.nats[0, 0] > 0


def test_style_counts_length_and_marks():
    style = style_of(["哈哈好呀", "去吗？", "嗯[笑哭]", "走。"])
    assert style["characters"] == pytest.approx((4 + 3 + 5 + 2) / 4)
    assert style["ends with 。！？~"] == 0.5
    assert style["ends with a particle"] == 0.25
    assert style["has 哈哈"] == 0.25
    assert style["has an emoji"] == 0.25
    assert style["asks"] == 0.25


def test_a_bot_compared_with_itself_shows_no_sign(prepared, checkpoint, capsys):
    flags = ["--checkpoint", str(checkpoint), "--before", str(checkpoint), "--data", str(prepared), "--replies", "2"]
    assert main([*flags, "--device", "cpu", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["more"] == 0
    assert result["interval"] == [0, 0]
    assert result["nats_per_unit"]["before"] == result["nats_per_unit"]["after"]
    assert main([*flags, "--device", "cpu"]) == 0
    output = capsys.readouterr().out
    assert "too few to say whether the bot has learnt this person" in output
    assert "95 %" not in output
    enough = {**result, "turns": 100, "dialogues": 8}
    assert "No sign that the bot has learnt this person more than the chats in general." in _lines(enough)
    assert "too few" in "".join(_lines({**enough, "dialogues": 7, "more": 0.5, "interval": [0.5, 0.5]}))
