"""The API through the official client, and through bad requests."""

from __future__ import annotations

import asyncio
import http.client
import socket
import struct
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from chatbot.chat.bot import candidate_seeds
from chatbot.chat.worker import Job
from chatbot.errors import XianliaoError
from tests.ui.api.conftest import HELLO, KEY
from ui.api.history import until_stop
from ui.api.routes import wait_for


def test_plain_and_streamed_are_the_reply_that_python_gives(client, server):
    expected = server[1].respond(["你好"], seed=5)
    answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=5)
    choice = answer.choices[0]
    assert choice.message.content == expected.text
    assert choice.finish_reason in ("stop", "length")
    assert answer.usage.completion_tokens == expected.generated_tokens
    tokenizer = server[1].tokenizer
    assert answer.usage.prompt_tokens == len([tokenizer.cls_id, *tokenizer.encode("你好"), tokenizer.sep_id])
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


def test_variants_are_those_of_python(client, server):
    extra = {"variation": 1, "spread": 0.5}
    answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=3, n=2, extra_body=extra)
    texts = [choice.message.content for choice in answer.choices]
    assert texts == [server[1].reply(["你好"], 3, variation=number, spread=0.5) for number in (1, 2)]
    for body, fault in (
        ({"variation": 8}, r"variation \+ n - 1 must be at most 8"),
        ({"variation": -1}, "variation: "),
        ({"variation": 1, "temperature": 0}, "remove variation or method greedy"),
        ({"spread": 3}, "spread: "),
    ):
        with pytest.raises(openai.BadRequestError, match=fault):
            client.chat.completions.create(model="tiny", messages=HELLO, n=2, extra_body=body)


def test_a_history_is_read_once_and_beside_the_event_loop(client, server, monkeypatch):
    bot, seen = server[2].state.workers["tiny"].bot, []
    request = bot.request

    def noted_request(turns, seed, **changes):
        try:
            asyncio.get_running_loop()
        except RuntimeError:
            seen.append(seed)
        return request(turns, seed, **changes)

    monkeypatch.setattr(bot, "request", noted_request)
    client.chat.completions.create(model="tiny", messages=HELLO, seed=3, n=3, max_tokens=1)
    assert seen == [3]


def test_a_seed_of_the_page_is_one_of_the_api(server):
    with pytest.raises(XianliaoError, match="from 0 to 2147483647"):
        server[1].request(["你好"], 2**31)
    assert server[1].request(["你好"], 2**31 - 1).seed == 2**31 - 1


def test_who_leaves_the_queue_is_noticed(monkeypatch):
    monkeypatch.setattr("ui.api.routes.DISCONNECT_SECONDS", 0.01)
    looks = [False, False, True]

    class Waiting:
        ended = False

        async def pieces(self):
            try:
                await asyncio.Event().wait()
                yield 0, ""
            finally:
                self.ended = True

        async def is_disconnected(self):
            return looks.pop(0)

    async def wait():
        waiting = Waiting()
        await asyncio.wait_for(wait_for(waiting, waiting), 5)
        await asyncio.sleep(0)
        return waiting.ended

    assert asyncio.run(wait())
    assert not looks


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


def test_the_messages_after_it_are_those_of_python(client, server):
    turns = ["我不想活了"]
    for message in (None, "嗯", "吃几片", "今天吃什么"):
        turns += [] if message is None else [message]
        roles = ("user", "assistant")
        messages = [{"role": roles[index % 2], "content": turn} for index, turn in enumerate(turns)]
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=messages, seed=1, n=2, stop=["，", "1"], max_tokens=1
        )
        assert raw.headers["x-fixed-reply"] == ("crisis" if message is None else "care")
        answer = raw.parse()
        texts = [choice.message.content for choice in answer.choices]
        assert texts == [server[1].reply(turns, seed=1)] * 2  # neither stop sequences nor limits cut it
        assert {choice.finish_reason for choice in answer.choices} == {"content_filter"}
        assert answer.usage.total_tokens == 0
        turns.append(texts[0])
    raw = client.chat.completions.with_raw_response.create(model="tiny", messages=HELLO)
    assert "x-fixed-reply" not in raw.headers


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
        ({"seed": -2}, openai.BadRequestError, "seed"),
        ({"seed": 2**31}, openai.BadRequestError, "seed"),
        ({"stop": "a" * 201}, openai.BadRequestError, "stop.*200"),
        ({"stop": ["a" * 201]}, openai.BadRequestError, "stop"),
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
    while live_replies(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert client.chat.completions.create(model="tiny", messages=HELLO).choices


def live_replies(server) -> float:
    shown = httpx.get(server[0] + "/metrics", headers=KEY).text
    return float(next(line for line in shown.splitlines() if line.startswith("xianliao_live_replies")).split()[1])


def test_a_cancelled_reply_is_gone_within_two_steps(client, server, monkeypatch):
    """Steps are held up, so that the reply is under way for as long as the test wants."""
    bot = server[2].state.workers["tiny"].bot
    monkeypatch.setattr(bot, "settings", bot.settings.with_changes(floor_start_tokens=5000, min_reply_tokens=4000))
    show, shown, cancelled = bot.show, [], threading.Event()

    def slow_show(request, draft):
        shown.append(len(draft.token_ids))
        time.sleep(0.05)
        return show(request, draft)

    monkeypatch.setattr(bot, "show", slow_show)
    cancel = Job.cancel

    def noted_cancel(job):
        cancel(job)
        shown.append("cancelled")
        cancelled.set()

    monkeypatch.setattr(Job, "cancel", noted_cancel)
    stream = client.chat.completions.create(model="tiny", messages=HELLO, stream=True)
    for _ in range(3):
        next(stream)
    stream.close()
    assert cancelled.wait(5)
    time.sleep(0.5)  # ten steps
    assert live_replies(server) == 0
    assert len(shown) - 1 - shown.index("cancelled") <= 2
    metrics = httpx.get(server[0] + "/metrics", headers=KEY).text
    assert 'xianliao_replies_total{model="tiny",reason="stopped"}' in metrics


def test_a_reply_that_fails_says_so_and_the_others_go_on(client, server, monkeypatch):
    bot = server[2].state.workers["tiny"].bot
    show = bot.show

    def failing_show(request, draft):
        if request.seed == 666 and len(draft.token_ids) > 2:
            raise RuntimeError("a step failed on 你好")
        return show(request, draft)

    monkeypatch.setattr(bot, "show", failing_show)
    with ThreadPoolExecutor(9) as pool:

        def ask(seed):
            try:
                answer = client.chat.completions.create(model="tiny", messages=HELLO, seed=seed)
                return answer.choices[0].message.content
            except openai.InternalServerError as error:
                return error.body["message"]

        replies = list(pool.map(ask, [1, 2, 3, 666, 4, 5, 6, 7]))
    assert "failed" in replies.pop(3)
    assert replies == [server[1].respond(["你好"], seed=seed).text for seed in range(1, 8)]
    with pytest.raises(openai.APIError, match="failed"):
        list(client.chat.completions.create(model="tiny", messages=HELLO, seed=666, stream=True))
    assert client.chat.completions.create(model="tiny", messages=HELLO).choices


def test_half_requests_and_clients_that_vanish_stop_nobody(client, server, monkeypatch):
    monkeypatch.setattr("ui.server.process.HEADER_SECONDS", 0.3)
    address = ("127.0.0.1", int(server[0].rpartition(":")[2]))
    post = b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n"
    body = b'{"messages":[{"role":"user","content":"a"}],"stream":true}'
    whole = post + b"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)
    parts = [b"", b"POST /v1/chat", post, post + b"Content-Length: 100\r\n\r\n{", post + b"\x00\r\n\r\n"]
    parts += [post + b"Transfer-Encoding: chunked\r\n\r\n5\r\n{", post + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n"]
    sockets = []
    for part in [*parts, whole] * 5:
        sockets.append(socket.create_connection(address, timeout=5))
        sockets[-1].sendall(part)
    assert client.chat.completions.create(model="tiny", messages=HELLO).choices
    for number, each in enumerate(sockets[len(parts) + 1 :]):  # half of them without a goodbye
        if number % 2:
            each.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        each.close()
    assert client.chat.completions.create(model="tiny", messages=HELLO).choices
    for each in sockets[:3]:  # headers that never come
        assert each.recv(100) == b""
    deadline = time.monotonic() + 10
    while live_replies(server):
        assert time.monotonic() < deadline
        time.sleep(0.05)


def test_a_body_in_tiny_chunks_is_refused_and_the_connection_closed(server):
    address = server[0].removeprefix("http://").encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nHost: %s\r\nAuthorization: Bearer secret\r\n" % address
    with socket.create_connection(("127.0.0.1", int(address.rpartition(b":")[2])), timeout=30) as client:
        client.sendall(head + b"Content-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n")
        client.sendall(b"1\r\na\r\n" * 100)
        answer = b"".join(iter(lambda: client.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 400")


def test_a_later_request_of_a_connection_may_not_drip_either(server, monkeypatch):
    connection = http.client.HTTPConnection("127.0.0.1", int(server[0].rpartition(":")[2]), timeout=5)
    for seconds in (5, 0.2):  # the timer for the next request starts when a response is complete
        monkeypatch.setattr("ui.server.process.HEADER_SECONDS", seconds)
        connection.request("GET", "/healthz")
        assert connection.getresponse().read()

    def drip():
        for byte in b"GET /healthz HTTP/1.1\r\nHost: x\r\nX: y":
            connection.sock.sendall(bytes([byte]))
            time.sleep(0.02)

    with pytest.raises(ConnectionError):
        drip()
    connection.close()


@pytest.mark.parametrize(
    ("text", "stops", "ended", "expected"),
    [
        ("你好吗", ["好"], False, ("你", True)),
        ("你好吗", ["吗吗"], False, ("你好", False)),
        ("你好吗", ["吗吗"], True, ("你好吗", False)),
        ("你好吗", [], False, ("你好吗", False)),
        ("abab", ["abc", "ba"], False, ("a", True)),
        ("ab", ["abc" * 10**7], False, ("", False)),
    ],
)
def test_stops(text, stops, ended, expected):
    assert until_stop(text, stops, ended) == expected
