"""The bundled bot with the settings it comes with: its replies end, do not repeat themselves, and echo nobody."""

from __future__ import annotations

import json

import pytest

from chatbot.chat.bot import Chatbot
from chatbot.evaluation.grid import Grid
from chatbot.evaluation.run import evaluate
from tests.conftest import ROOT, SAMPLES

SHARED = ROOT.parent / "shared" / "data" / "LCCC-base_valid.json"


def contexts(count: int) -> list[list[str]]:
    """Dialogues of LCCC where they are at hand, of the project's own, with every turn once the last, otherwise."""
    if SHARED.is_file():
        dialogues = json.loads(SHARED.read_text(encoding="utf-8"))
        return [[turn.strip() for turn in turns] for turns in dialogues if len(turns) > 1][:count]
    lines = [line for path in sorted(SAMPLES.glob("*.jsonl")) for line in path.read_text(encoding="utf-8").splitlines()]
    dialogues = [json.loads(line) for line in lines]
    return [turns[:end] for turns in dialogues for end in range(2, len(turns) + 1)][:count]


@pytest.mark.slow
def test_a_thousand_replies(tmp_path):
    data = tmp_path / "data.jsonl"
    lines = [json.dumps(turns, ensure_ascii=False) for turns in contexts(1000)]
    data.write_text("\n".join(lines), encoding="utf-8")
    grid = Grid((64, 128), {"default": {}, "without rules": {"base": "floor"}}, subsets=5, resamples=100)
    report = evaluate([Chatbot.from_pretrained()], data, tmp_path / "report", grid=grid)["report"]
    ours, without = report["checkpoints"][0]["decoding"].values()
    assert ours["replies"] == len(lines)
    assert ours["repetitive"] < 0.005
    assert ours["echo"] < 0.01
    assert ours["empty"] < 0.01
    assert ours["r_128"] == 0
    assert ours["stop_reasons"]["limit"] == 0
    assert ours["reference_cost_nats_per_unit"] <= 0.05 * ours["reference_nats_per_unit"]
    assert ours["mean_characters"] >= 0.6 * without["mean_characters"]  # .71: the best of 4 is shorter than one reply
    assert without["reference_cost_nats_per_unit"] <= 0.01  # the floor alone
    assert without["repetitive"] >= ours["repetitive"]
