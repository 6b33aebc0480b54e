"""Another way to say it, on the page."""

from __future__ import annotations

import json

import gradio as gr
import pytest

from chatbot.chat.variants import MAX_VARIATION
from tests.ui.page.test_page import chat_of, worker  # noqa: F401  # a fixture
from ui.options import ServeOptions
from ui.page.actions import Actions
from ui.page.charts import trace_reply
from ui.page.chats import ChatError, checked, number_of, texts_to_avoid, with_message
from ui.page.feedback import rated_turns
from ui.page.handlers import PageSettings, answer
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


def test_the_button_adds_variants_up_to_the_last_number(worker, bot, tmp_path):  # noqa: F811
    act = Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None)
    *_, (chat, _) = answer(worker, chat_of(("user", "你好")), PageSettings(seed=3, temperature=1.0), "zh")

    def press(step: int, spread: object = 1):
        return act.another(chat, spread, gr.SelectData(None, {"index": step, "value": ""}), None)

    for step, spread in ((1, 0), (2, 1), (3, 2)):
        (reply,) = press(step, spread)
        assert reply["text"] == bot.reply(["你好"], 3, variation=step, spread=spread, temperature=1.0)
        assert (reply["variation"], reply["spread"], reply["seed"]) == (step, spread, 3)
    for step, spread, words in ((MAX_VARIATION + 1, 1, "8 other ways"), (1, "far", "must be numbers")):
        with pytest.raises(gr.Error, match=words):
            press(step, spread)


def test_a_variant_that_a_browser_sends_back_can_be_rated(worker, tmp_path):  # noqa: F811
    act = Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None)
    asked = chat_of(("user", "你好"))
    *_, (chat, _) = answer(worker, asked, PageSettings(seed=3, temperature=1.0), "zh")
    (reply,) = act.another(chat, 1, gr.SelectData(None, {"index": 1, "value": ""}), None)
    sent = {name: int(value) if value == 1 else value for name, value in reply.items()}  # JSON.stringify(1.0) is "1"
    liked = gr.LikeData(None, {"index": 1, "value": "", "liked": True})
    act.rate(with_message(asked, sent), liked, None)
    (line,) = map(json.loads, (tmp_path / "feedback.jsonl").read_text(encoding="utf-8").splitlines())
    assert (line["seed"], line["temperature"], line["variation"], line["spread"]) == (3, 1, 1, 1)


def test_numbers_from_a_browser_are_bounded():
    numbers = {float("nan"): 0, -3: 0, 2.0: 2, 1e300: MAX_VARIATION}
    assert {value: number_of({"role": "assistant", "text": "", "variation": value}) for value in numbers} == numbers


def test_trying_again_gives_a_reply_that_was_not_seen(worker, bot, monkeypatch, tmp_path):  # noqa: F811
    """Although the bot would say the same: every reply has the same seed here."""
    monkeypatch.setattr("chatbot.chat.bot.secrets.randbelow", lambda limit: 5)
    act = Actions({"tiny": worker}, ServeOptions(data_dir=tmp_path), None)
    *_, (chat, _) = act.answer(chat_of(("user", "你好")), "tiny", None, 0.5, None, None)
    seen = [chat["messages"][-1]["text"]]
    for number in range(1, 4):
        asked, *_ = act.retry({**chat, "avoid": [*seen, 7, None]}, None)
        assert asked["avoid"] == sorted(seen)
        steps = [chat for chat, _ in act.answer(asked, "tiny", None, 0.5, None, None)]
        chat = steps[-1]
        assert not [step for step in steps if step["messages"][-1]["text"] in seen]
        last = chat["messages"][-1]
        assert (last["seed"], last["variation"], last["spread"], "avoid" in chat) == (5, number, 1.0, False)
        assert last["text"] == bot.reply(["你好"], 5, variation=number, temperature=0.5)
        seen.append(last["text"])
    *_, (chat, _) = act.answer({**asked, "avoid": seen}, "tiny", 5, 0.5, None, None)  # a seed that the person has set
    assert chat["messages"][-1]["text"] == seen[0]


@pytest.mark.parametrize("avoid", [None, 7, "你好", {"a": 1}, [["你好"]]])
def test_replies_to_avoid_of_another_form_are_none(avoid):
    assert not texts_to_avoid({"messages": [], "avoid": avoid})
    assert not texts_to_avoid(avoid)
