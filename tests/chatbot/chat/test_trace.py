"""The way a reply was chosen is that of the reply itself."""

from __future__ import annotations

import pytest

from chatbot.chat.trace import MAX_SHOWN, trace
from chatbot.chat.worker import Worker
from chatbot.decoding.settings import ReplySettings


@pytest.mark.parametrize(
    "changes",
    [{}, {"top_p": 1.0}, {"top_k": 4}, {"method": "greedy"}, {"method": "beam", "beams": 3}, {"floor_start_tokens": 2}],
)
def test_the_steps_are_those_of_the_reply(bot, changes):
    for seed in range(3):
        reply = bot.respond(["你好", "嗨", "吃了吗"], seed=seed, **changes)
        steps = list(filter(None, trace(bot, bot.request(["你好", "嗨", "吃了吗"], seed, **changes))))
        tokens = [bot.tokenizer.decode([token]) for token in reply.token_ids]
        assert [step.token for step in steps] == [*tokens, ""]
        for step in steps:
            assert 0 < step.probability <= 1 + 1e-6
            assert sum(share for _, share in step.likeliest) <= 1 + 1e-5
            assert len(step.likeliest) == min(step.count, MAX_SHOWN)
        if changes == {}:
            assert any(step.count < bot.tokenizer.vocab_size // 2 for step in steps)


def test_the_floor_is_seen_to_rise_and_to_hold(bot):
    bot.settings = ReplySettings(floor_start_tokens=2, floor_delta_tokens=4, min_reply_tokens=0)
    long = max((list(filter(None, trace(bot, bot.request(["你好"], seed)))) for seed in range(20)), key=len)
    assert len(long) > 4
    floors = [step.floor for step in long]
    assert floors == sorted(floors)
    assert floors[2] == 0
    assert floors[3] == pytest.approx(1 - 0.5**0.25)
    assert all(step.end_kept >= step.floor - 1e-6 for step in long)


def test_the_worker_traces_beside_replies(bot):
    expected = list(filter(None, trace(bot, bot.request(["你好"], 3))))
    text = bot.reply(["在吗"], seed=1)
    worker = Worker(bot)
    try:
        replies = worker.stream_replies(["在吗"], 1)
        next(replies)
        for step, alone in zip(worker.trace(["你好"], 3), expected, strict=True):
            assert (step.token, step.count) == (alone.token, alone.count)
            for name in ("probability", "end", "end_kept", "floor"):  # beside another reply, rounding differs
                assert getattr(step, name) == pytest.approx(getattr(alone, name), abs=1e-5)
        *_, last = replies
        assert last.text == text
    finally:
        worker.close(0)
