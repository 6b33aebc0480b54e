"""The API through the official client, and through bad requests."""

from __future__ import annotations

import socket
import threading
import time

import httpx
import openai
import pytest
import uvicorn

from chatbot.bot import Chatbot, candidate_seeds
from ui.completions import until_stop
from ui.options import ServeOptions
from ui.server import create_app

HELLO = [{"role": "user", "content": "你好"}]
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def server(checkpoint):
    """A real server on a free port, with a key."""
    bot = Chatbot.from_pretrained(checkpoint)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(create_app(bot, ServeOptions(api_keys=("secret",))), port=port, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{port}", Chatbot.from_pretrained(checkpoint)
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server[0] + "/v1", api_key="secret", max_retries=0) as client:
        yield client


def test_plain_and_streamed_are_the_reply_that_python_gives(client, server):
    expected = server[1].respond(["你好"], seed=5)
    answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=5)
    choice = answer.choices[0]
    assert choice.message.content == expected.text
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens == len(expected.token_ids) + 1
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens
    stream = client.chat.completions.create(
        model="default", messages=HELLO, seed=5, stream=True, stream_options={"include_usage": True}
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == expected.text
    assert chunks[-1].usage == answer.usage
    assert [c.choices[0].finish_reason for c in chunks if c.choices][-1] == choice.finish_reason


def test_several_at_once_and_seeds(client, server):
    first, second = (client.chat.completions.create(model="tiny", messages=HELLO, seed=3, n=3) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert texts == [server[1].respond(["你好"], seed=seed).text for seed in candidate_seeds(3, 3)]
    assert (
        len({client.chat.completions.create(model="tiny", messages=HELLO).choices[0].message.content for _ in "1234"})
        > 1
    )


def test_settings_of_a_request(client, server):
    bot = server[1]
    answer = client.chat.completions.create(model="tiny", messages=HELLO, temperature=0).choices[0]
    assert answer.message.content == bot.respond(["你好"], method="greedy").text
    answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=1, max_tokens=2).choices[0]
    assert answer.message.content == bot.respond(["你好"], seed=1, max_reply_tokens=2).text
    whole = bot.respond(["你好"], seed=1).text
    stop = whole[2:4]
    for stream in (False, True):
        answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=1, stop=stop, stream=stream)
        text = (
            "".join(c.choices[0].delta.content or "" for c in answer) if stream else answer.choices[0].message.content
        )
        assert text == whole[: whole.index(stop)]


def test_who_may_be_in_danger_gets_no_small_talk(client):
    messages = [*HELLO, {"role": "assistant", "content": "你好"}, {"role": "user", "content": "我不想活了"}]
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=messages)
    assert raw.headers["x-fixed-reply"] == "crisis"
    choice = raw.parse().choices[0]
    assert "12356" in choice.message.content
    assert choice.finish_reason == "content_filter"
    streamed = client.chat.completions.create(model="tiny", messages=messages, stream=True)
    assert "".join(c.choices[0].delta.content or "" for c in streamed) == choice.message.content


def test_histories(client, server):
    messages = [
        {"role": "system", "content": "你是一只猫"},
        {"role": "user", "content": "你好"},
        {"role": "user", "content": [{"type": "text", "text": "在吗"}]},
        {"role": "assistant", "content": "在"},
        {"role": "user", "content": "吃了吗"},
    ]
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=messages, seed=2)
    assert raw.headers["x-ignored"] == "system"
    assert raw.headers["x-conversation-id"]
    expected = server[1].respond(["你好\n在吗", "在", "吃了吗"], seed=2).text
    assert raw.parse().choices[0].message.content == expected


@pytest.mark.parametrize(
    ("changes", "kind", "words"),
    [
        ({"model": "gpt-9"}, openai.NotFoundError, "no model"),
        ({"messages": [*HELLO, {"role": "assistant", "content": "嗯"}]}, openai.BadRequestError, "last message"),
        ({"messages": []}, openai.BadRequestError, "messages"),
        ({"messages": [{"role": "system", "content": "嗯"}]}, openai.BadRequestError, "no user message"),
        ({"messages": [{"role": "user", "content": " "}]}, openai.BadRequestError, "empty"),
        ({"messages": [{"role": "user", "content": "长" * 20_000}]}, openai.BadRequestError, "too long"),
        ({"messages": [{"role": "robot", "content": "嗯"}]}, openai.BadRequestError, "messages"),
        ({"n": 9}, openai.BadRequestError, "n: "),
        ({"temperature": 3}, openai.BadRequestError, "temperature"),
        ({"max_tokens": 0}, openai.BadRequestError, "max_tokens"),
        ({"seed": -1}, openai.BadRequestError, "seed"),
    ],
)
def test_what_cannot_be_answered_is_said(client, changes, kind, words):
    with pytest.raises(kind, match=words) as caught:
        client.chat.completions.create(**{"model": "tiny", "messages": HELLO, **changes})
    assert caught.value.body["message"].endswith(".")


def test_the_key(server):
    with (
        openai.OpenAI(base_url=server[0] + "/v1", api_key="wrong", max_retries=0) as client,
        pytest.raises(openai.AuthenticationError, match="API key"),
    ):
        client.models.list()
    assert httpx.get(server[0] + "/healthz").status_code == 200
    missing = httpx.get(server[0] + "/v1/embeddings", headers=KEY)
    assert missing.status_code == 404
    assert "/v1/models" in missing.json()["error"]["message"]
    wrong = httpx.post(server[0] + "/v1/chat/completions", content=b"{", headers=KEY)
    assert wrong.status_code == 400
    assert wrong.json()["error"]["type"] == "invalid_request_error"


def test_models_and_metrics(client, server):
    assert [model.id for model in client.models.list()] == ["tiny"]
    client.chat.completions.create(model="tiny", messages=HELLO)
    shown = httpx.get(server[0] + "/metrics", headers=KEY).text
    for name in (
        "replies_total",
        "reply_tokens_total",
        "first_token_seconds_bucket",
        "live_replies",
        "waiting_replies",
    ):
        assert f"xianliao_{name}" in shown
    assert "你好" not in shown


def test_a_client_that_leaves_frees_its_place(client, server):
    body = {"model": "tiny", "messages": HELLO, "stream": True, "temperature": 2}
    for _ in range(5):
        with httpx.stream("POST", server[0] + "/v1/chat/completions", json=body, headers=KEY) as response:
            next(response.iter_lines())
    deadline = time.monotonic() + 10
    while "xianliao_live_replies 0.0" not in httpx.get(server[0] + "/metrics", headers=KEY).text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.chat.completions.create(model="tiny", messages=HELLO).choices


@pytest.mark.parametrize(
    ("text", "stops", "ended", "expected"),
    [
        ("你好吗", ["好"], False, ("你", True)),
        ("你好吗", ["吗吗"], False, ("你好", False)),
        ("你好吗", ["吗吗"], True, ("你好吗", False)),
        ("你好吗", [], False, ("你好吗", False)),
        ("abab", ["abc", "ba"], False, ("a", True)),
    ],
)
def test_stops(text, stops, ended, expected):
    assert until_stop(text, stops, ended) == expected
