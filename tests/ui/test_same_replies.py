"""One history, one seed: one reply, whether Python, a session, the API or the page asks the bundled bot."""

from __future__ import annotations

import pytest
from fastapi.testclient import TestClient

from chatbot.chat.bot import Chatbot
from chatbot.chat.session import ChatSession
from ui.options import ServeOptions
from ui.page.chats import new_chat, with_message
from ui.page.handlers import PageSettings, answer
from ui.server.app import create_app

MESSAGES = (
    *(
        "什么意思？？呀",
        "你妈妈来接你了吗",
        "他妈妈的菜好吃吗",
        "今天吃什么",
        "你是谁",
        "我想听你妈的故事",
        "我跟我妈吵架了",
    ),
    *("在干嘛", "昨天那个电影太好看了", "我不想活了", "滚蛋", "你脑残吗", "明天考试"),
)
HISTORIES = [
    *([message] for message in MESSAGES),
    *(["你好", "你好呀", message] for message in MESSAGES),
    *(["我不想活了", "我很担心你。", "嗯"], ["我跟他妈妈说了", "她怎么说", "她说随便"]),
    *(["我妈的手机坏了", "修一修", "修不好"], ["妈妈", "怎么了", "想她"]),
    *(["他才发现", "发现什么", "什么意思？？呀"], ["他来了", "他妈妈也来了", "为什么"], ["烦死了", "怎么了", "没什么"]),
]


@pytest.fixture(scope="module")
def served():
    """The app with a worker of its own, and a bot like its own that nobody else uses."""
    app = create_app(Chatbot.from_pretrained("default"), ServeOptions())
    with TestClient(app, base_url="http://localhost") as client:
        yield app, client, Chatbot.from_pretrained("default")


@pytest.mark.parametrize(
    "seed", [0, pytest.param(13, marks=pytest.mark.slow), pytest.param(200, marks=pytest.mark.slow)]
)
def test_thirty_three_replies(served, seed):
    app, client, bot = served
    worker = app.state.workers["default"]
    assert len(HISTORIES) == 33
    for turns in HISTORIES:
        expected = bot.reply(turns, seed=seed)
        assert ChatSession(bot, turns[:-1]).reply(turns[-1], seed) == expected
        messages = [{"role": ("user", "assistant")[at % 2], "content": turn} for at, turn in enumerate(turns)]
        body = client.post("/v1/chat/completions", json={"messages": messages, "seed": seed}).json()
        assert body["choices"][0]["message"]["content"] == expected, (turns, seed)
        chat = new_chat()
        for message in messages:
            chat = with_message(chat, {"role": message["role"], "text": message["content"]})
        *_, (chat, _) = answer(worker, chat, PageSettings(seed=seed), "zh")
        assert chat["messages"][-1]["text"] == expected, (turns, seed)
