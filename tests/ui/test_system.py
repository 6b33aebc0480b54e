"""System prompts of chat models in the API and on the page."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from chatbot import Chatbot
from chatbot.chat.worker import Worker
from tests.chat_models import write_chat_model
from ui.options import ServeOptions
from ui.page import chats, handlers
from ui.page.actions import Actions
from ui.page.charts import trace_reply
from ui.page.chat_files import from_text, to_json, to_markdown
from ui.page.handlers import PageSettings
from ui.page.variants import variant
from ui.server.app import create_app

SYSTEM = "你是一只猫。\n\n# 说话要短。"
HELLO = {"role": "user", "content": "你好"}


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def talker(dialogues, tmp_path_factory, request) -> Chatbot:
    folder = tmp_path_factory.mktemp("talker") / request.param
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], request.param)
    bot = Chatbot.from_pretrained(folder)
    bot.settings = bot.settings.with_changes(max_reply_tokens=8)
    return bot


@pytest.fixture(scope="module")
def client(talker):
    with TestClient(create_app(talker, ServeOptions()), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def worker(talker):
    worker = Worker(talker)
    yield worker
    worker.close(0)


def ask(client, *messages, **more):
    return client.post("/v1/chat/completions", json={"messages": messages, "seed": 2, **more})


@pytest.mark.parametrize("role", ["system", "developer"])
@pytest.mark.parametrize("content", [SYSTEM, [{"type": "text", "text": SYSTEM}]])
def test_the_api_reads_a_system_prompt(client, talker, role, content):
    answer = ask(client, {"role": role, "content": content}, HELLO)
    assert "X-Ignored" not in answer.headers
    expected = talker.respond(["你好"], 2, system=SYSTEM)
    assert answer.json()["choices"][0]["message"]["content"] == expected.text
    usage = answer.json()["usage"]["prompt_tokens"]
    assert usage == len(talker.request(["你好"], 2, system=SYSTEM).prompt.input_ids)
    assert usage != ask(client, HELLO).json()["usage"]["prompt_tokens"]


def test_the_api_joins_several_and_names_later_ones(client, talker):
    system = {"role": "system", "content": "一"}
    answer = ask(client, system, {"role": "developer", "content": "二"}, HELLO, system, HELLO)
    assert answer.headers["X-Ignored"] == "system"
    assert answer.json()["choices"][0]["message"]["content"] == talker.reply(["你好\n你好"], 2, system="一\n\n二")
    assert ask(client, {"role": "system", "content": [{"type": "image_url"}]}, HELLO).headers["X-Ignored"] == "system"
    long = ask(client, {"role": "system", "content": "猫" * 5000}, HELLO)
    assert (long.status_code, "system prompt is too long" in long.json()["error"]["message"]) == (400, True)


def test_our_models_have_none_and_the_header_says_so(bot):
    with TestClient(create_app(bot, ServeOptions()), base_url="http://localhost") as client:
        answer = ask(client, {"role": "system", "content": SYSTEM}, HELLO)
    assert answer.headers["X-Ignored"] == "system"
    assert answer.json()["choices"][0]["message"]["content"] == bot.reply(["你好"], 2)


def test_the_page_reads_it_and_shows_the_same_reply_again(worker, talker):
    chat = {**chats.with_message(chats.new_chat(), {"role": "user", "text": "你好"}), "system": SYSTEM}
    *_, (answered, _) = handlers.answer(worker, chat, PageSettings(seed=2), "zh")
    expected = talker.respond(["你好"], 2, system=SYSTEM)
    assert answered["messages"][-1]["text"] == expected.text
    assert chats.checked(answered) == answered
    steps = trace_reply(lambda name: worker, answered, 1)
    assert [step.token for step in steps[: len(expected.token_ids)]] == [
        talker.tokenizer.decode([token]) for token in expected.token_ids
    ]
    other = variant(lambda name: worker, answered, 1, 1.0)["messages"][-1]["text"]
    assert other == talker.reply(["你好"], 2, system=SYSTEM, variation=1, spread=1.0)
    *_, offered = handlers.candidates(worker, answered, PageSettings(seed=2))
    assert [each["text"] for each in offered if "variation" not in each] == [
        talker.reply(["你好"], each["seed"], system=SYSTEM) for each in offered if "variation" not in each
    ]


def test_the_field_is_there_for_models_that_have_one(worker, talker, bot, tmp_path):
    other = Worker(bot)
    try:
        act = Actions({"other": other, "chat": worker}, ServeOptions(data_dir=tmp_path), None)
        assert not act.show_system("other").visible
        assert act.show_system("chat").visible
        chat = act.set_system(chats.new_chat(), f" {SYSTEM}\n", "chat", None)
        assert chat["system"] == SYSTEM
        for model, count in (("chat", 5_000), ("other", 500_001)):
            with pytest.raises(Exception, match="too long"):
                act.set_system(chats.new_chat(), "猫" * count, model, None)
        asked = chats.with_message(chat, {"role": "user", "text": "你好"})
        *_, (answered, _) = handlers.answer(other, asked, PageSettings(seed=2), "zh")  # another model was chosen
        assert answered["messages"][-1]["text"] == bot.reply(["你好"], 2)
    finally:
        other.close(0)


def test_a_rated_reply_is_recorded_with_its_system_prompt(worker, tmp_path):
    act = Actions({worker.bot.name: worker}, ServeOptions(data_dir=tmp_path), None)
    chat = {**chats.with_message(chats.new_chat(), {"role": "user", "text": "你好"}), "system": SYSTEM}
    seed = next(seed for seed in range(50) if worker.bot.reply(["你好"], seed, system=SYSTEM))
    *_, (answered, _) = handlers.answer(worker, chat, PageSettings(seed=seed), "zh")
    act.rate(answered, type("Event", (), {"index": 1, "liked": True})(), None)
    (line,) = (tmp_path / "feedback.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(line)["system"] == SYSTEM


def test_files_keep_it():
    chat = chats.with_message({**chats.new_chat(), "system": SYSTEM}, {"role": "user", "text": "你好"})
    for text in (to_json(chat), to_markdown(chat), json.dumps([{"role": "system", "content": SYSTEM}, HELLO])):
        read = from_text(text)
        assert (read["system"], read["messages"]) == (SYSTEM, [{"role": "user", "text": "你好"}])
