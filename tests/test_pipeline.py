"""The README's pipeline, run as its reader would, and the bundled checkpoint."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from chatbot import Chatbot, ChatSession
from chatbot.checkpoint.folder import resolve
from chatbot.model.scoring import score_dialogues
from chatbot.text.dialogue import clean_turn, count_units
from data_prep.corpus.content_hash import are_valid, content_hash
from tests.conftest import ROOT, SAMPLES

SHARED = ROOT.parent / "shared" / "data" / "LCCC-base_valid.json"


def run(module: str, *arguments: object, cwd: Path) -> str:
    command = [sys.executable, "-m", module, *map(str, arguments)]
    result = subprocess.run(command, capture_output=True, text=True, cwd=cwd)
    assert result.returncode == 0, result.stderr[-2000:]
    return result.stdout


@pytest.mark.slow
def test_raw_file_to_reply(tmp_path):
    """prepare, train, evaluate and chat; on LCCC where it lies beside the project, else on the samples."""
    source = SHARED if SHARED.exists() else SAMPLES
    preset = ROOT / "training" / "presets" / "cpu_smoke.yaml"
    run("data_prep", "--input", source, "--output", tmp_path / "prepared", cwd=tmp_path)
    run(
        "training",
        "--data",
        "prepared",
        "--output",
        "smoke",
        "--config",
        preset,
        "--epochs",
        99,
        "--max-steps",
        60,
        cwd=tmp_path,
    )
    metrics = [json.loads(line) for line in (tmp_path / "smoke" / "metrics.jsonl").read_text().splitlines()]
    assert metrics[-1]["loss"] < metrics[0]["loss"] - 1
    data = ["--data", SAMPLES, "--contexts", 30]
    output = run("chatbot.evaluation", "--checkpoint", "smoke", *data, "--output", "report", cwd=tmp_path)
    assert "30 replies of smoke ended" in output
    assert "greedy + floor" in (tmp_path / "report" / "report.md").read_text(encoding="utf-8")
    assert "<svg" in (tmp_path / "report" / "report.html").read_text(encoding="utf-8")
    terminal = run("chatbot", "--checkpoint", "smoke", "--message", "你好", "--seed", 1, cwd=tmp_path).strip()
    assert terminal == Chatbot.from_pretrained(tmp_path / "smoke").reply(["你好"], seed=1)


@pytest.mark.slow
def test_two_minute_fine_tune_of_the_default_on_the_samples(tmp_path):
    """Own dialogues on top of the bundled bot: their own loss falls."""
    preset = ROOT / "training" / "presets" / "cpu_finetune.yaml"
    run("data_prep", "--input", SAMPLES, "--tokenizer", "default", "--output", "own", cwd=tmp_path)
    options = ["--config", preset, "--epochs", 2]
    run("training", "--data", "own", "--init", "default", "--output", "mine", *options, cwd=tmp_path)
    metrics = [json.loads(line) for line in (tmp_path / "mine" / "metrics.jsonl").read_text().splitlines()]
    losses = [entry["loss"] for entry in metrics]
    assert sum(losses[-3:]) < sum(losses[:3])
    assert run("chatbot", "--checkpoint", "mine", "--message", "你好", "--seed", 1, cwd=tmp_path).strip()


class TestDefaultCheckpoint:
    @pytest.fixture(scope="class")
    def bot(self):
        return Chatbot.from_pretrained()

    def test_it_is_small_and_complete(self):
        folder = resolve("default")
        assert sum(path.stat().st_size for path in folder.iterdir()) <= 21_000_000
        record = json.loads((folder / "training.json").read_text(encoding="utf-8"))
        assert record["data"]
        card = (folder / "README.md").read_text(encoding="utf-8")
        for word in ("MIT", "nats/unit", "trigram", "parameters"):
            assert word in card

    def test_it_answers_in_chinese_and_ends(self, bot):
        session = ChatSession(bot)
        for seed, message in enumerate(["你好", "今天天气真好", "周末想去看电影", "最近好累啊", "晚安"]):
            session.reply(message, seed)
            assert any("\u4e00" <= char <= "\u9fff" for char in session.last_reply.text)
            assert len(session.last_reply.token_ids) <= bot.settings.limit_tokens

    def test_it_has_learnt_chinese(self, bot, dialogues):
        """On the project's own dialogues that the content hash held out: far below a unigram model's 5.9 nats/unit."""
        turns = [[clean_turn(turn) for turn in dialogue] for dialogue in dialogues]
        heads = np.frombuffer(b"".join(content_hash(dialogue)[:8] for dialogue in turns), "<u8")
        turns = [turns[index] for index in np.flatnonzero(are_valid(heads, 0.05))]
        assert len(turns) >= 5
        ids = [[bot.tokenizer.encode(turn) for turn in dialogue] for dialogue in turns]
        assert sum(score_dialogues(bot.model, bot.layout, ids)) / sum(map(count_units, turns)) < 4.7

    def test_it_is_found_from_any_directory(self, tmp_path):
        assert run("chatbot", "--message", "你好", "--seed", 1, cwd=tmp_path).strip()
