"""What the page does, without a browser."""

from __future__ import annotations

import itertools
import socket

import pytest
from fastapi.testclient import TestClient

from chatbot.errors import XianliaoError
from ui.cli import listen, main
from ui.handlers import message_fault, respond, to_turns
from ui.safety import Safety
from ui.text import TEXT, language_of


def message(role: str, text: str) -> dict:
    return {"role": role, "content": [{"type": "text", "text": text}]}


@pytest.mark.parametrize(
    ("history", "turns"),
    [
        ([], []),
        ([message("user", "你好"), message("assistant", "嗨")], ["你好", "嗨"]),
        ([{"role": "user", "content": "你好"}], ["你好"]),
        ([message("user", "一"), message("user", "二"), message("assistant", "三")], ["一\n二", "三"]),
        ([message("assistant", "欢迎"), message("user", "一")], ["一"]),
    ],
)
def test_history_becomes_alternating_turns(history, turns):
    assert to_turns(history) == turns


def test_the_page_gives_the_reply_that_python_gives(bot):
    history = [message("user", "你好"), message("assistant", "你好呀")]
    steps = list(respond(bot, "今天吃什么", history, 7, None, None, "zh"))
    assert steps[-1][0] == bot.reply(["你好", "你好呀", "今天吃什么"], seed=7)
    assert "种子 7" in steps[-1][1]
    assert str(bot.settings.limit_tokens) in steps[-1][1]
    assert all(after[0].startswith(before[0]) for before, after in itertools.pairwise(steps))


def test_who_may_be_in_danger_gets_the_fixed_reply_alone(bot):
    steps = list(respond(bot, "我不想活了", [], 7, None, None, "zh", None, Safety.load()))
    assert len(steps) == 1
    assert "12356" in steps[0][0]
    assert list(respond(bot, "你好", [], 7, None, None, "zh", None, Safety.load()))[-1][0]


def test_a_message_that_was_never_answered_joins_the_next(bot):
    steps = list(respond(bot, "在吗", [message("user", "你好")], 7, None, None, "en"))
    assert steps[-1][0] == bot.reply(["你好\n在吗"], seed=7)
    assert "seed 7" in steps[-1][1]


def test_an_unanswered_message_that_is_too_much_does_not_block_the_chat(bot):
    bot.max_message_tokens = 20
    steps = list(respond(bot, "在吗", [message("user", "很长" * 10)], 7, None, None, "zh"))
    assert steps[-1][0] == bot.reply(["在吗"], seed=7)


@pytest.mark.parametrize("text", ["<b>粗</b> &lt; 1<2 a&b <", "<img src=x onerror=alert(1)>", "你好"])
def test_markup_is_kept_from_being_markup_and_comes_back_as_it_was(text):
    from ui.handlers import shown_as_text

    shown = shown_as_text([{"type": "text", "text": text}])
    assert "<b>" not in shown[0]["text"]
    assert "&lt;" not in shown[0]["text"]
    assert shown[0]["text"].replace("\u200b", "") == text
    assert to_turns([{"role": "user", "content": shown}]) == [text]


def test_messages_that_cannot_be_sent_are_explained_in_the_pages_language(bot):
    assert message_fault(bot, "你好", "zh") is None
    assert message_fault(bot, " \n", "zh") == TEXT["zh"]["empty"]
    assert "100000" in message_fault(bot, "长" * 100_000, "en")


def test_both_languages_say_the_same_things():
    assert TEXT["zh"].keys() == TEXT["en"].keys()


@pytest.mark.parametrize(
    ("header", "language"), [("zh-CN,zh;q=0.9,en;q=0.8", "zh"), ("en-US,zh", "en"), (None, "en"), ("", "en")]
)
def test_language_follows_the_browser(header, language):
    assert language_of(header) == language


def test_the_server_answers(bot):
    from ui.server import create_app

    with TestClient(create_app(bot)) as client:
        assert client.get("/healthz").json() == {"status": "ok", "checkpoint": "tiny", "version": "0.1.0"}
        page = client.get("/")
        assert page.status_code == 200
        assert "闲聊" in page.text


def test_telemetry_is_off():
    import os

    import ui.app  # noqa: F401

    assert os.environ["GRADIO_ANALYTICS_ENABLED"] == "False"


def test_a_taken_port_is_one_sentence(capsys):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with pytest.raises(XianliaoError, match=str(port)):
            listen("127.0.0.1", port)
        assert main(["--port", str(port)]) == 1
    assert "choose another --host or --port" in capsys.readouterr().err
    assert main(["--port", "99999"]) == 1
    assert "Traceback" not in capsys.readouterr().err
