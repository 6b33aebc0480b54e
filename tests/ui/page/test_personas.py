"""Personas of the page on the bundled bot: how often a reply is in role.

A reply is in role if it has a word that the persona says and the bot does not say that it is a program. Such a word can be
part of a reply that makes no sense; the note beside the personas says so.
"""

from __future__ import annotations

import re

import pytest

from chatbot import Chatbot, ChatSession
from ui.page.text import PERSONAS

IN_ROLE = {"cat": "喵|小猫", "scholar": "在下|姑娘|公子", "butler": "主人|主家|管家|为您", "child": "[呀嘛啦]"}
OUT_OF_ROLE = re.compile("聊天(程序|机器人)")
TALKS = [
    ["我今天上班好累", "晚上吃什么好呢", "你会陪我吗", "外面下雨了", "晚安"],
    ["在干嘛呢", "我明天要考试了，有点怕", "给我讲个笑话", "你喜欢什么", "谢谢你"],
    ["你好", "我跟朋友吵架了", "你觉得我该怎么办", "好吧，听你的", "那我先去忙了"],
]


@pytest.fixture(scope="module")
def bundled() -> Chatbot:
    return Chatbot.from_pretrained("default")


@pytest.mark.slow
@pytest.mark.parametrize("name", PERSONAS)
def test_seven_of_ten_replies_are_in_role(bundled, name):
    replies = []
    for number, messages in enumerate(TALKS):
        session = ChatSession(bundled, PERSONAS[name])
        replies += [session.reply(message, 100 + 10 * number + at) for at, message in enumerate(messages)]
    in_role = [reply for reply in replies if re.search(IN_ROLE[name], reply) and not OUT_OF_ROLE.search(reply)]
    assert len(in_role) / len(replies) >= 0.7, replies
