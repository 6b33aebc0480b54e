"""A conversation that the API refuses is not tokenized."""

from __future__ import annotations

import pytest

from chatbot.chat.bot import Chatbot
from chatbot.chat.request import CHARACTERS_PER_TOKEN, max_message_characters
from chatbot.text.tokenizer import DialogueTokenizer
from tests.ui.server.test_bounds import COMPLETE, client_of
from ui.api.requests import MAX_MESSAGES
from ui.turns import MAX_CHARACTERS


@pytest.fixture(scope="module")
def bot(checkpoint):
    return Chatbot.from_pretrained(checkpoint)


@pytest.fixture(scope="module")
def api(bot):
    with client_of(bot) as client:
        yield client


@pytest.fixture
def tokenized(monkeypatch) -> list[int]:
    """Lengths of the texts that are tokenized."""
    lengths, real = [], DialogueTokenizer.encode

    def recording(self, text, *args, **options):
        lengths.append(len(text))
        return real(self, text, *args, **options)

    monkeypatch.setattr(DialogueTokenizer, "encode", recording)
    return lengths


def talk(*texts: str) -> list[dict]:
    return [{"role": ("user", "assistant")[index % 2], "content": text} for index, text in enumerate(texts)]


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"messages": talk("长" * 100_000)}, 400, "too long"),
        ({"messages": talk("长" * 5_000, "嗯", "长" * 100_001)}, 400, "too long"),
        ({"messages": talk("长" * 300_000, "嗯", "长" * 200_000)}, 400, "the limit is 500000"),
        ({"messages": talk(*["长"] * (MAX_MESSAGES + 1))}, 400, "messages"),
        ({"messages": talk("你好", "长" * 1_000)}, 400, "last message"),
        ({"messages": talk("你好"), "temperature": 3}, 400, "temperature"),
        ({"messages": talk("你好"), "model": "gpt-9"}, 404, "no model"),
        ({"messages": talk("你好"), "n": 99}, 400, "n: "),
    ],
    ids=["message", "message after turns", "conversation", "many messages", "no message", "setting", "model", "n"],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_refused_conversation_is_not_tokenized(api, tokenized, body, status, words, stream):
    answer = api.post(COMPLETE, json={**body, "stream": stream})
    assert answer.status_code == status
    assert words in answer.json()["error"]["message"]
    assert tokenized == []


def test_of_an_accepted_one_only_what_can_matter_is_tokenized(api, bot, tokenized):
    """An old turn that overfills the context is shortened first, and the message is below its limit."""
    answer = api.post(COMPLETE, json={"messages": talk("长" * 400_000, "嗯", "你好")})
    assert answer.status_code == 200
    assert tokenized
    assert max(tokenized) <= max(CHARACTERS_PER_TOKEN * bot.context_tokens + 1, max_message_characters(10**6))
    assert sum(tokenized) < MAX_CHARACTERS / 2
