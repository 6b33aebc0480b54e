"""A model that cannot learn 64 dialogues by heart has something wrong with it."""

from __future__ import annotations

import json
import time

import pytest

from chatbot.chat.bot import Chatbot
from data_prep.pipeline import build
from data_prep.settings import PrepareSettings
from tests.conftest import SAMPLES
from training.run import train
from training.settings import ModelSettings, TrainSettings

MINUTES = 5


@pytest.mark.slow
@pytest.mark.alone
def test_64_dialogues_are_learnt_by_heart(tmp_path):
    lines = (SAMPLES / "everyday.jsonl").read_text(encoding="utf-8").splitlines()[:64]
    (tmp_path / "some.jsonl").write_text("\n".join(lines), encoding="utf-8")
    build([str(tmp_path / "some.jsonl")], tmp_path / "set", PrepareSettings(vocab_size=1000, valid_share=0))
    started = time.monotonic()
    train(
        TrainSettings(
            data=[str(tmp_path / "set")],
            output=str(tmp_path / "run"),
            model=ModelSettings(
                hidden_size=128, num_hidden_layers=3, num_attention_heads=2, head_dim=64, intermediate_size=512
            ),
            epochs=50,
            row_tokens=256,
            batch_rows=4,
            micro_batch_rows=4,
            optimizer="muon",
            learning_rate=5e-3,
            warmup_steps=10,
            eval_every=10**6,
            save_every=10**6,
            device="cpu",
        )
    )
    assert time.monotonic() - started < 60 * MINUTES
    bot = Chatbot.from_pretrained(tmp_path / "run", device="cpu")
    dialogues = [json.loads(line) for line in lines]
    wanted = [(turns[:end], turns[end]) for turns in dialogues for end in range(1, len(turns))]
    greedy = {"method": "greedy", "floor_start_tokens": 64}
    right = sum(bot.reply(history, **greedy) == reply for history, reply in wanted)
    assert right / len(wanted) >= 0.9, f"{right} of {len(wanted)}"
