"""Histories as messages with roles, what objects print as, and conversations in files."""

from __future__ import annotations

import json

import pytest

from chatbot import ChatSession
from chatbot.chat.turns import as_messages, as_turns
from chatbot.errors import FileError
from chatbot.text.dialogue import DialogueError

TURNS = ["你好", "你好呀", "今天好累"]


def test_messages_with_roles_get_the_reply_of_the_same_turns(bot):
    assert bot.reply(as_messages(TURNS), seed=3) == bot.reply(TURNS, seed=3)
    assert list(bot.stream(as_messages(TURNS), seed=3)) == list(bot.stream(TURNS, seed=3))


def test_messages_of_one_role_are_joined():
    messages = [("assistant", "欢迎"), ("user", "你好"), ("user", "在吗"), ("assistant", "在"), ("user", "好")]
    assert as_turns([{"role": role, "content": text} for role, text in messages]) == ["你好\n在吗", "在", "好"]
    assert as_turns(TURNS) is TURNS


@pytest.mark.parametrize(
    ("messages", "words"),
    [
        ([{"role": "system", "content": "你是猫"}, {"role": "user", "content": "你好"}], "this model takes none"),
        ([{"role": "user", "content": "你好"}, {"role": "system", "content": "你是猫"}], "'system'"),
        ([{"role": "user"}], "its text as content"),
        ([{"role": "user", "content": ["你好"]}], "its text as content"),
        ([{"role": "user", "content": "你好"}, "你好呀"], "'你好呀'"),
        ([*as_messages(["你好", "你好呀"])], "must be the user's"),
    ],
)
def test_other_messages_are_refused(bot, messages, words):
    with pytest.raises(DialogueError, match=words):
        bot.reply(messages, seed=0)


def test_a_bot_and_a_conversation_print_what_they_are(bot):
    assert repr(bot).startswith("<Chatbot tiny: 0.")
    assert f"replies of at most {bot.settings.bound_tokens} tokens" in repr(bot)
    session = ChatSession(bot, TURNS[:2])
    assert repr(session) == f"<ChatSession of 2 turns with {bot!r}, the last: 你好呀>"
    assert repr(ChatSession(bot)) == f"<ChatSession of 0 turns with {bot!r}>"


def test_a_saved_conversation_goes_on_where_it_ended(bot, tmp_path):
    path = tmp_path / "chat.json"
    session = ChatSession(bot, temperature=0.5)
    session.reply("你好", seed=1)
    session.save(path)
    later = ChatSession.load(bot, path)
    assert later.turns == session.turns
    assert later.messages == [{"role": "user", "content": "你好"}, {"role": "assistant", "content": session.turns[1]}]
    assert later.reply("再说一句", seed=2) == session.reply("再说一句", seed=2)
    assert later.undo() == "再说一句"


@pytest.mark.parametrize(
    "content",
    ["[]", "{}", '{"messages": [{"role": "assistant", "content": "a"}], "changes": {}}', "{"]
    + [json.dumps({"messages": [{"role": "user", "content": 3}], "changes": {}})]
    + [json.dumps({"messages": [], "changes": changes}) for changes in ([], {"temprature": 1}, {"temperature": -1})],
)
def test_a_damaged_file_is_explained(bot, tmp_path, content):
    path = tmp_path / "chat.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(FileError, match=r"chat\.json"):
        ChatSession.load(bot, path)


def test_the_chat_template_of_a_tokenizer_folder_writes_the_prompt(bot, checkpoint):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    turns = ["你好[SEP]", "你好 呀", "今天[CLS]好累"]
    ids = tokenizer.apply_chat_template(
        as_messages(turns), return_dict=False, tokenizer_kwargs={"split_special_tokens": False}
    )
    special = [token for token in ids if token in bot.tokenizer.special_ids]
    assert special == [bot.tokenizer.cls_id, *[bot.tokenizer.sep_id] * 3]
    plain = ["你好", "你好呀", "今天好累"]
    ids = tokenizer.apply_chat_template(
        as_messages(plain), return_dict=False, tokenizer_kwargs={"split_special_tokens": False}
    )
    assert ids == bot.layout.prompt(bot.encode_turns(plain), bot.context_tokens).input_ids
