"""Another way to say it, on the page."""

from __future__ import annotations

import pytest

from chatbot.chat.variants import MAX_VARIATION
from tests.ui.page.test_page import chat_of, worker  # noqa: F401  # a fixture
from ui.page.chats import ChatError, checked, number_of
from ui.page.handlers import PageSettings, answer, rated_turns, trace_reply
from ui.page.variants import variant


def test_variants_walk_forth_and_back_and_can_be_rated_and_traced(worker, bot):  # noqa: F811
    chats = [chat for chat, _ in answer(worker, chat_of(("user", "你好")), PageSettings(seed=3, temperature=0.9), "zh")]
    first = chats[-1]

    def step(chat, by: int, spread: float = 1.0):
        return variant(lambda name: worker, checked(chat), by, spread)

    second = step(first, 1)
    third = step(second, 1)
    texts = [chat["messages"][-1]["text"] for chat in (first, second, third)]
    assert texts == [bot.reply(["你好"], 3, variation=number, temperature=0.9) for number in range(3)]
    assert step(third, -1) == second
    assert step(second, -1)["messages"][-1] == first["messages"][-1]
    assert step(first, -1)["messages"][-1]["text"] == texts[0]
    assert [number_of(chat["messages"][-1]) for chat in (first, second, third)] == [0, 1, 2]
    assert rated_turns(checked(second), 1) == ["你好", texts[1]]
    with pytest.raises(ChatError):
        rated_turns({**second, "messages": [second["messages"][0], {**second["messages"][1], "variation": 2}]}, 1)
    traced = trace_reply(lambda name: worker, second, 1)
    ids = bot.respond(["你好"], 3, variation=1, temperature=0.9).token_ids
    assert [part.token for part in traced[: len(ids)]] == [bot.tokenizer.decode([token]) for token in ids]
    assert step(first, 1, spread=float("inf")) == step(first, 1, spread=2.0)


def test_only_a_complete_reply_can_be_varied(worker):  # noqa: F811
    for chat in (chat_of(), chat_of(("user", "你好")), chat_of(("user", "你好"), ("assistant", "嗨"))):
        with pytest.raises(ChatError, match="not a complete reply"):
            variant(lambda name: worker, chat, 1, 1.0)


def test_numbers_from_a_browser_are_bounded():
    numbers = {float("nan"): 0, -3: 0, 2.0: 2, 1e300: MAX_VARIATION}
    assert {value: number_of({"role": "assistant", "text": "", "variation": value}) for value in numbers} == numbers
