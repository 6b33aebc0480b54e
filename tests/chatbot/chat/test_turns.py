"""One text in, whatever the keyboard: terminal, Python, API and page read the same; and the script of the reply."""

from __future__ import annotations

import itertools

import pytest

from chatbot.chat.bot import Chatbot
from chatbot.chat.session import ChatSession
from chatbot.chat.turns import asks_in_traditional, in_traditional
from chatbot.text.characters import is_readable
from chatbot.text.dialogue import DialogueError


@pytest.mark.parametrize("text", ["你好\u200b吗", "你好\u3000吗", "你好\u00a0吗", "你好吗\ufeff"])
def test_a_message_gives_the_reply_of_its_plain_text(bot, text):
    expected = bot.respond(["你好吗"], seed=1)
    reply = bot.respond([text], seed=1)
    assert (reply.text, reply.token_ids) == (expected.text, expected.token_ids)
    assert ChatSession(bot).reply(text, 1) == expected.text
    assert bot.reply(["Ａ１，好", "\u200b嗯", text], seed=2) == bot.reply(["A1，好", "嗯", "你好吗"], seed=2)


@pytest.mark.parametrize("text", ["\u200b", "\ufeff\u200d", "\u3000\u00a0", "\ue000\x00"])
def test_a_message_of_invisible_characters_is_empty(bot, text):
    with pytest.raises(DialogueError, match="empty"):
        bot.reply([text], seed=1)
    with pytest.raises(DialogueError, match="empty"):
        ChatSession(bot).reply(text)


def test_a_message_of_many_invisible_characters_is_empty_and_one_word_in_them_is_read(bot):
    with pytest.raises(DialogueError, match="empty"):
        bot.reply(["\u200b" * 5000], seed=1)
    assert bot.reply(["\u200b" * 1500 + "你好吗"], seed=1) == bot.reply(["你好吗"], seed=1)


def test_traditional_is_read_as_the_settings_say(bot):
    turns, plain = ["聽說你會講笑話", "會", "妳看著我"], ["听说你会讲笑话", "会", "你看着我"]
    expected = bot.reply(plain, seed=3)
    assert bot.reply(turns, seed=3, script="simplified") == expected
    assert bot.request(turns, 3, script="simplified").prompt == bot.request(plain, 3).prompt
    assert bot.request(turns, 3).prompt != bot.request(plain, 3).prompt
    bot.settings = bot.settings.with_changes(script="simplified")
    assert bot.reply(turns, seed=3) == expected


def test_a_reply_has_the_script_of_the_asker(bot):
    turns, plain = ["聽說你會講笑話"], ["听说你会讲笑话"]
    expected = bot.respond(plain, seed=3)
    reply = bot.respond(turns, seed=3, script="asker")
    assert reply.token_ids == expected.token_ids
    assert reply.text == in_traditional(expected.text, True)
    assert bot.reply(plain, seed=3, script="asker") == expected.text
    texts = list(bot.stream(turns, seed=3, script="asker"))
    assert all(after.startswith(before) for before, after in itertools.pairwise(texts))
    assert texts[-1] == reply.text


def test_the_newest_message_that_shows_a_script_decides():
    assert asks_in_traditional(["聽說", "好", "嗯"])
    assert not asks_in_traditional(["聽說", "好", "听说"])
    assert not asks_in_traditional(["好", "聽說", "嗯"])  # the bot's own turn does not count
    assert not asks_in_traditional(["hello"])


def test_a_growing_text_is_converted_in_whole_words():
    assert in_traditional("头发", True) == "頭髮"
    assert in_traditional("发", True) == "發"
    grown = [in_traditional("好，理发店发现了。后来"[:end], False) for end in range(12)]
    assert all(after.startswith(before) for before, after in itertools.pairwise(grown))
    assert grown[-1] == "好，理髮店發現了。"
    assert in_traditional("好，理发店发现了。后来", True) == "好，理髮店發現了。後來"


@pytest.mark.slow
def test_the_bundled_bot_reads_traditional_and_says_readable_text():
    bot = Chatbot.from_pretrained()
    assert bot.settings.script == "simplified"
    pairs = {"聽說你會講笑話": "听说你会讲笑话", "頭髮掉了怎麼辦": "头发掉了怎么办", "今天天氣怎麼樣": "今天天气怎么样"}
    for seed in range(8):
        for typed, plain in pairs.items():
            assert bot.reply([typed], seed) == bot.reply([plain], seed)
        for text in (*pairs, "こんにちは", "안녕하세요", "囍龘"):
            assert all(map(is_readable, bot.reply([text], seed)))
            assert all(map(is_readable, bot.reply([text], seed, script="typed")))
