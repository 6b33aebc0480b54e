"""Thoughts of a chat model in the API and on the page."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from chatbot import Chatbot
from chatbot.chat.worker import Worker
from tests.chat_models import THINKING, write_chat_model
from ui.options import ServeOptions
from ui.page import chats, handlers
from ui.page.handlers import PageSettings
from ui.server.app import create_app

BODY = {"messages": [{"role": "user", "content": "你好"}], "seed": 2, "max_tokens": 8}
THINKS = {"chat_template_kwargs": {"enable_thinking": True}}


@pytest.fixture(scope="module")
def bot(dialogues, tmp_path_factory) -> Chatbot:
    folder = tmp_path_factory.mktemp("thoughts") / "qwen3"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], "qwen3")
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "chat_template": THINKING}, ensure_ascii=False), encoding="utf-8")
    bot = Chatbot.from_pretrained(folder)
    forced = ((bot.tokenizer.id_of("<think>"), 100.0),)
    bot.settings = bot.settings.with_changes(logit_bias=forced, thinking_tokens=6)
    return bot


@pytest.fixture(scope="module")
def client(bot):
    with TestClient(create_app(bot, ServeOptions()), base_url="http://localhost") as client:
        yield client


def test_reasoning_content_is_apart_from_the_content(client, bot):
    expected = bot.respond(["你好"], 2, thinking="shown", max_reply_tokens=8)
    answer = client.post("/v1/chat/completions", json={**BODY, **THINKS}).json()
    message = answer["choices"][0]["message"]
    assert (message["content"], message["reasoning_content"]) == (expected.text, expected.thoughts)
    assert expected.thoughts
    assert answer["usage"]["completion_tokens"] == expected.generated_tokens
    with client.stream("POST", "/v1/chat/completions", json={**BODY, **THINKS, "stream": True}) as response:
        lines = [line.removeprefix("data: ") for line in response.iter_lines() if line]
    deltas = [json.loads(line)["choices"][0]["delta"] for line in lines if line != "[DONE]"]
    assert "".join(delta.get("reasoning_content") or "" for delta in deltas) == expected.thoughts
    assert "".join(delta.get("content") or "" for delta in deltas) == expected.text
    kinds = ["reasoning" if "reasoning_content" in delta else "content" for delta in deltas if len(delta) == 1]
    assert kinds == sorted(kinds, reverse=True)  # all thoughts come before the answer


def test_without_the_switch_there_are_no_thoughts(client, bot):
    for more in ({}, {"chat_template_kwargs": {"enable_thinking": False}}):
        answer = client.post("/v1/chat/completions", json={**BODY, **more})
        assert "X-Ignored" not in answer.headers
        message = answer.json()["choices"][0]["message"]
        assert message.get("reasoning_content") is None
        assert message["content"] == bot.respond(["你好"], 2, thinking="off", max_reply_tokens=8).text
    odd = {"chat_template_kwargs": {"enable_thinking": "yes"}}
    assert client.post("/v1/chat/completions", json={**BODY, **odd}).status_code == 400
    other = {"chat_template_kwargs": {"enable_thinking": False, "tools": 1}}
    assert client.post("/v1/chat/completions", json={**BODY, **other}).headers["X-Ignored"] == "tools"


def test_the_page_gets_the_thoughts_of_the_newest_reply(bot):
    settings = bot.settings
    bot.settings = settings.with_changes(thinking="shown")
    worker = Worker(bot)
    try:
        chat = chats.with_message(chats.new_chat(), {"role": "user", "text": "你好"})
        *_, (last, _) = handlers.answer(worker, chat, PageSettings.from_fields(3, None, None), "zh")
    finally:
        worker.close()
        bot.settings = settings
    message = last["messages"][-1]
    expected = bot.respond(["你好"], 3, thinking="shown")
    assert (message["text"], message["thoughts"]) == (expected.text, expected.thoughts)
    assert chats.checked(last) == last
    assert chats.turns_of(last) == ["你好", expected.text]
