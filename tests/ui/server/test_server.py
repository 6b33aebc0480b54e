"""Who may use the server, which checkpoint answers, what is too much, and what the log says."""

from __future__ import annotations

import base64
import json
import logging
import os
import shutil
import time
from contextlib import contextmanager, suppress

import httpx
import pytest
from fastapi.testclient import TestClient

from chatbot.chat.bot import Chatbot
from chatbot.errors import XianliaoError
from chatbot.safety import FOLDER, Safety
from ui.checkpoints import load_bots
from ui.cli import is_loopback, main
from ui.options import ServeOptions
from ui.server.access import Access, read_keys, read_users
from ui.server.app import create_app
from ui.server.limits import MAX_SENDERS, RateLimit
from ui.server.logs import LOGGER, MAX_WAITING_LINES, BackgroundHandler, LineFormatter

HELLO = {"messages": [{"role": "user", "content": "你好"}], "seed": 5}
COMPLETE = "/v1/chat/completions"


def basic(pair: str) -> dict:
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


@contextmanager
def client_of(bots, **options):
    with TestClient(create_app(bots, ServeOptions(**options)), base_url="http://localhost") as client:
        yield client


def test_a_server_leaves_its_bots_as_they_are(checkpoint, tmp_path):
    folder = tmp_path / "safety"
    shutil.copytree(FOLDER, folder)
    (folder / "words_out.txt").write_text("呵呵\n", encoding="utf-8")
    (folder / "crisis.txt").write_text("你好\n", encoding="utf-8")
    bot = Chatbot.from_pretrained(checkpoint)
    before, safety = bot.settings, bot.safety
    for _ in range(2):
        app = create_app(bot, ServeOptions(), Safety.load(folder))
        (worker,) = app.state.workers.values()
        assert worker.bot.request(["嗯"]).settings.banned_words == ("呵呵",)
        with TestClient(app, base_url="http://localhost") as client:
            assert client.post(COMPLETE, json=HELLO).headers["x-fixed-reply"] == "crisis"
    assert (bot.settings, bot.safety) == (before, safety)
    with client_of(bot) as client:
        answer = client.post(COMPLETE, json=HELLO)
        assert "x-fixed-reply" not in answer.headers
        assert answer.json()["choices"][0]["message"]["content"] == bot.reply(["你好"], seed=5)


@pytest.fixture(scope="module")
def two(checkpoint, tmp_path_factory):
    """A server of two checkpoints of one folder name that say different things, with a user and a key."""
    folders = []
    for name, floor in (("a", 12), ("b", 2)):
        folder = tmp_path_factory.mktemp("two") / name / "final"
        shutil.copytree(checkpoint, folder)
        settings = {"floor_start_tokens": floor, "floor_delta_tokens": 2}
        (folder / "generation_config.json").write_text(json.dumps(settings), encoding="utf-8")
        folders.append(str(folder))
    with client_of(load_bots(folders), auth=(("ann", "pw:1"),), api_keys=("k1", "k2")) as client:
        yield client, folders


def test_every_checkpoint_can_be_chosen(two):
    client, folders = two
    client.headers = {"Authorization": "Bearer k2"}
    assert [model["id"] for model in client.get("/v1/models").json()["data"]] == ["a/final", "b/final"]
    replies = [Chatbot.from_pretrained(folder).reply(["你好"], seed=5) for folder in folders]
    assert replies[0] != replies[1]
    for name, reply in ((None, 0), ("default", 0), ("a/final", 0), ("b/final", 1)):
        answer = client.post(COMPLETE, json={**HELLO, "model": name}).json()
        assert answer["choices"][0]["message"]["content"] == replies[reply]
        assert answer["model"] == "ab"[reply] + "/final"
    refused = client.post(COMPLETE, json={**HELLO, "model": "final"})
    assert refused.status_code == 404
    assert refused.json()["error"]["code"] == "model_not_found"
    assert "a/final, b/final" in refused.json()["error"]["message"]
    shown = client.get("/metrics").text
    assert 'xianliao_replies_total{model="a/final"' in shown
    assert 'xianliao_replies_total{model="b/final"' in shown


def test_one_checkpoint_twice_is_refused(bot, checkpoint):
    with pytest.raises(XianliaoError, match="twice"):
        load_bots([str(checkpoint), str(checkpoint)])
    with pytest.raises(XianliaoError, match="'tiny'"):
        create_app([bot, bot])


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"Authorization": "Bearer k1"}, 200),
        ({"Authorization": "bearer k2"}, 200),
        ({"Authorization": "Bearer k3"}, 401),
        ({"Authorization": "k1"}, 401),
        ({"Authorization": "Basic k1"}, 401),
        ({"Authorization": "Basic é".encode("latin-1")}, 401),
        (basic("ann:pw:1"), 200),
        (basic("ann:pw"), 401),
        (basic("bob:pw:1"), 401),
        ({"Authorization": "Bearer ann:pw:1"}, 401),
    ],
)
def test_keys_and_users_open_the_api_and_the_counters(two, headers, status):
    client = two[0]
    client.headers = headers
    for path in ("/v1/models", "/metrics"):
        answer = client.get(path)
        assert answer.status_code == status
        assert status == 200 or answer.json()["error"]["code"] == "invalid_api_key"
    assert client.post(COMPLETE, json={**HELLO, "max_tokens": 1}).status_code == status
    assert client.get("/healthz").status_code == 200


def test_users_close_the_page_too(two):
    client = two[0]
    client.headers = {}
    for path in ("/config", "/gradio_api/info"):
        assert client.get(path).status_code == 401
    assert client.post("/gradio_api/queue/join", json={"data": []}).status_code == 401
    assert client.post("/login", data={"username": "ann", "password": "pw"}).status_code == 400
    assert client.post("/login", data={"username": "ann", "password": "pw:1"}).status_code == 200


def test_access_tells_who_it_is():
    access = Access((("ann", "pw"),), ("k1",))
    assert access.identify(basic("ann:pw")["Authorization"]) == "user ann"
    assert access.identify("Bearer k1").startswith("key ")
    assert "k1" not in access.identify("Bearer k1").removeprefix("key ") or len("k1") < 3
    assert access.identify("Bearer 错") is None
    assert Access().is_open


def test_users_and_keys_come_from_files(tmp_path):
    users, keys = tmp_path / "users", tmp_path / "keys"
    users.write_text("# us\nann:a:b\n\nbob:密码\n", encoding="utf-8")
    keys.write_text("k1\nk2\nk1\n", encoding="utf-8")
    assert read_users([str(users), "eve:x"]) == (("ann", "a:b"), ("bob", "密码"), ("eve", "x"))
    assert read_keys([str(keys), "k3"]) == ("k1", "k2", "k3")
    keys.write_text("\n")
    for read, value, words in (
        (read_users, "nobody", "user:password"),
        (read_users, "ann:", "user:password"),
        (read_users, ":pw", "user:password"),
        (read_keys, str(keys), "empty"),
        (read_keys, "钥匙", "ASCII"),
        (read_keys, "two words", "ASCII"),
    ):
        with pytest.raises(XianliaoError, match=words):
            read([value])
    with pytest.raises(XianliaoError, match="twice"):
        read_users(["ann:1", "ann:2"])


def test_no_secret_stands_in_an_error(tmp_path):
    damaged = tmp_path / "geheim"
    damaged.write_bytes(b"\xff\xfe")
    long = "geheim" * 100
    assert read_keys([long]) == (long,)
    for read, value in (
        (read_users, long),
        (read_users, "geheim"),
        (read_users, str(damaged)),
        (read_keys, "geheim\0"),
    ):
        with pytest.raises(XianliaoError) as caught:
            read([value])
        assert "geheim" not in str(caught.value)
        assert str(caught.value).endswith(".")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--host", "127.0.0.1"], None),
        (["--host", "localhost"], None),
        (["--host", "127.0.0.9"], None),
        (["--host", "::1"], None),
        (["--host", "0.0.0.0"], "chat and use the API"),
        (["--host", "::"], "chat and use the API"),
        (["--host", "0.0.0.0", "--api-key", "k"], "can chat. Add --auth"),
        (["--host", "0.0.0.0", "--auth", "a:b"], None),
        (["--host", "0.0.0.0", "--auth", "a:b", "--api-key", "k"], None),
    ],
)
def test_a_server_that_others_can_reach_warns(arguments, words, capsys, monkeypatch):
    seen = {}
    monkeypatch.setattr("ui.cli.serve", lambda args, options, listener: listener.close() or seen.update(o=options) or 0)
    try:
        assert main([*arguments, "--port", "0"]) == 0
    except AssertionError:
        if "--host" in arguments and ":" in arguments[1]:
            pytest.skip("this machine has no IPv6")
        raise
    warned = capsys.readouterr().err.splitlines()
    assert len(warned) == bool(words)
    assert not words or words in warned[0]
    assert (seen["o"].rate_limit > 0) == (arguments[1] in ("0.0.0.0", "::"))


def test_flags_become_options(tmp_path, monkeypatch):
    seen = {}
    monkeypatch.setattr("ui.cli.serve", lambda args, options, listener: listener.close() or seen.update(o=options) or 0)
    flags = ["--data-dir", str(tmp_path), "--no-feedback", "--no-saved-chats", "--rate-limit", "7", "--log-text"]
    names = ["--allow-host", "chat.lan", "--allow-origin", "https://app.example.com"]
    assert main(["--port", "0", "--auth", "a:b", "--auth", "c:d", "--api-key", "k", *flags, *names]) == 0
    users, hosts, origins = (("a", "b"), ("c", "d")), ("127.0.0.1", "chat.lan"), ("https://app.example.com",)
    expected = ServeOptions(users, ("k",), tmp_path, False, False, hosts, origins, 7, log_text=True)
    assert seen["o"] == expected
    assert is_loopback("::1")
    assert not is_loopback("fe80::1%eth0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--rate-limit", "-1"], "at least 0"),
        (["--port", "99999"], "65535"),
        (["--port", "-1"], "65535"),
        (["--auth", "geheim"], "user:password"),
        (["--api-key", "geh eim"], "without spaces"),
        (["--checkpoint", "default", "default"], "twice"),
    ],
)
def test_wrong_usage_ends_with_2_and_one_sentence(arguments, words, capsys):
    with pytest.raises(SystemExit) as caught:
        main(["--port", "0", *arguments])
    assert caught.value.code == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert sentence.startswith("xianliao-serve: error: ")
    assert words in sentence
    assert "geheim" not in sentence


def test_the_rate_is_of_each_sender_and_comes_back_evenly():
    now = [0.0]
    rate = RateLimit(6, lambda: now[0])
    assert [rate.charge("ann") for _ in range(7)] == [0] * 6 + [10]
    assert rate.charge("bob") == 0
    now[0] = 9
    assert rate.charge("ann") == 1
    now[0] = 10
    assert rate.charge("ann") == 0
    assert rate.charge("ann", 0.1) == 1
    now[0] = 10_000
    assert [rate.charge("ann") for _ in range(7)] == [0] * 6 + [10]
    for number in range(MAX_SENDERS + 5):
        rate.charge(str(number))
    assert len(rate._left) == MAX_SENDERS
    assert not any(RateLimit(0).charge("ann") for _ in range(1000))


def test_the_sender_that_was_quiet_for_longest_is_forgotten(monkeypatch):
    monkeypatch.setattr("ui.server.limits.MAX_SENDERS", 3)
    rate = RateLimit(1, lambda: 0.0)
    for sender in ("ann", "bob", "cid", "ann"):  # ann was refused a moment ago, bob has been quiet for longest
        rate.charge(sender)
    assert rate.charge("dan") == 0
    assert [rate.charge(sender) > 0 for sender in ("ann", "cid", "dan")] == [True, True, True]
    assert rate.charge("bob") == 0


def test_too_much_is_refused_as_openai_says_it(bot):
    with client_of(bot, body_bytes=1000, rate_limit=3, api_keys=("k1", "k2")) as client:
        client.headers = {"Authorization": "Bearer k1"}
        large = b" " * 1001
        for body in (large, iter([b" " * 500] * 3)):  # with a stated length, and in chunks
            refused = client.post(COMPLETE, content=body)
            assert refused.status_code == 413
            assert refused.json()["error"] == {
                "message": "A request may have at most 1000 bytes.",
                "type": "invalid_request_error",
                "param": None,
                "code": "body_too_large",
            }
        assert client.post(COMPLETE, json=HELLO).status_code == 200
        refused = client.post(COMPLETE, json=HELLO)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 20
        assert refused.json()["error"]["code"] == "rate_limit_exceeded"
        assert client.get("/healthz").status_code == 200
        assert client.get("/v1/models", headers={"Authorization": "Bearer k2"}).status_code == 200
        client.headers = {}
        page = client.post("/gradio_api/queue/join", content=large)  # the page's words are in `detail`
        assert page.status_code == 413
        assert "1000 bytes" in page.json()["detail"]


def test_every_reply_of_a_request_counts(bot):
    with client_of(bot, rate_limit=4) as client:
        pair = {**HELLO, "n": 2}
        assert [client.post(COMPLETE, json=pair).status_code for _ in range(3)] == [200, 200, 429]
    with client_of(bot, rate_limit=4) as client:  # at most a full bucket, else it could never be answered
        assert client.post(COMPLETE, json={**HELLO, "n": 8}).status_code == 200
        assert client.post(COMPLETE, json=HELLO).status_code == 429
    with client_of(bot) as client:
        assert client.post(COMPLETE, json={**HELLO, "n": 8}).status_code == 200


def test_a_reply_is_queued_for_its_sender(bot):
    with client_of(bot, api_keys=("k1",)) as client:
        worker, senders = client.app.state.workers[bot.name], []
        queue = worker._queue
        worker._queue = lambda job: (queue(job), senders.append(job.sender))
        headers = {"Authorization": "Bearer k1"}
        assert client.post(COMPLETE, json={**HELLO, "n": 2}, headers=headers).status_code == 200
        assert len(senders) == 2
        assert set(senders) == {client.app.state.limits.access.identify("Bearer k1")}


def test_keys_cannot_be_tried_at_the_counters(bot):
    with client_of(bot, rate_limit=3, api_keys=("k1",)) as client:
        answers = [client.get("/metrics", headers={"Authorization": f"Bearer {number}"}) for number in range(4)]
        assert [answer.status_code for answer in answers] == [401] * 3 + [429]
        right = [client.get("/metrics", headers={"Authorization": "Bearer k1"}) for _ in range(5)]
        assert {answer.status_code for answer in right} == {200}
        assert client.get("/healthz").status_code == 200
    with client_of(bot, rate_limit=1) as client:
        assert [client.get("/metrics").status_code for _ in range(3)] == [200] * 3


def test_a_closing_server_says_so(bot):
    with client_of(bot) as client:
        client.app.state.limits.closing = True
        for path in ("/v1/models", "/healthz", "/"):
            assert client.get(path).status_code == 503
        assert "Try again" in client.get("/v1/models").json()["error"]["message"]


def test_errors_are_openais_wherever_they_are_below_v1(bot):
    with client_of(bot) as client:
        for method, path, status in (
            ("GET", "/v1/embeddings", 404),
            ("POST", "/v1/models", 405),
            ("TRACE", COMPLETE, 405),
            ("WHAT", "/v1/chat/x", 404),
        ):
            answer = client.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["message"].endswith(".")
            assert status != 405 or answer.headers["allow"] in ("GET, HEAD", "POST")


def lines_of(caplog, with_text: bool = False) -> list[dict]:
    formatter = LineFormatter(as_json=True, with_text=with_text)
    return [json.loads(formatter.format(record)) for record in caplog.records if record.name == LOGGER.name]


@pytest.mark.parametrize("log_text", [False, True])
def test_one_line_a_request_and_no_word_of_it(bot, caplog, log_text):
    caplog.set_level(logging.INFO, LOGGER.name)
    with client_of(bot, api_keys=("geheim",), log_text=log_text) as client:
        client.headers = {"Authorization": "Bearer geheim", "X-Conversation-Id": "ann-7"}
        plain = client.post(COMPLETE, json={**HELLO, "n": 2}).json()
        client.post(COMPLETE, json={**HELLO, "stream": True})
        client.get("/v1/悄悄话?秘密")
        client.get("/")
        reply = bot.respond(["吃了吗"], seed=1)
        client.app.state.on_reply("tiny", reply, 0.01, "吃了吗", "吃了吗", "stopped")
    first, second, third, fourth = lines_of(caplog)
    assert first["event"] == second["event"] == fourth["event"] == "reply"
    assert first["tokens"] == plain["usage"]["completion_tokens"]
    assert {"time", "level", "method", "route", "status", "model", "seconds", "first_token_seconds"} <= first.keys()
    assert (first["method"], first["route"], first["status"]) == ("POST", COMPLETE, 200)
    assert len(first["stop_reason"].split(",")) == 2
    assert first["conversation"] == second["conversation"] != fourth["conversation"]
    assert (third["event"], third["level"], third["status"], third["route"]) == ("request", "warning", 404, "/v1")
    assert (fourth["route"], fourth["stop_reason"], fourth["tokens"]) == ("page", "stopped", len(reply.token_ids) + 1)
    text = str([list(line.values()) for line in lines_of(caplog)])
    for secret in ("geheim", "ann-7", "testclient", "悄悄话", "秘密"):
        assert secret not in text
    for word in ("你好", "吃了吗", plain["choices"][0]["message"]["content"], reply.text):
        assert (repr(word)[1:-1] in text) == log_text


def test_an_exception_in_the_log_quotes_nobody():
    try:
        raise ValueError("悄悄话")
    except ValueError as error:
        record = LOGGER.makeRecord(LOGGER.name, logging.ERROR, "", 0, "failed", (), (ValueError, error, None))
    for as_json in (True, False):
        line = LineFormatter(as_json).format(record)
        assert "ValueError" in line
        assert "悄悄话" not in line
        assert "\n" not in line
    assert "悄悄话" in LineFormatter(True, with_text=True).format(record)


def test_a_log_that_nobody_reads_stops_nothing():
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with suppress(BlockingIOError):
        while os.write(writing, b"\n" * 1000):
            pass
    os.set_blocking(writing, True)
    handler = BackgroundHandler(writing)
    record = LOGGER.makeRecord(LOGGER.name, logging.INFO, "", 0, "长" * 1000, (), None)
    handler.emit(record)
    while handler._lines.qsize():  # until its thread is stuck on the full pipe
        time.sleep(0.01)
    started = time.monotonic()
    for _ in range(MAX_WAITING_LINES + 200):
        handler.emit(record)
    handler.finish(0.1)
    assert time.monotonic() - started < 2
    assert handler._dropped
    os.close(reading)


def test_the_openapi_document_names_bodies_and_errors(bot):
    with client_of(bot, api_keys=("k",)) as client:
        assert client.get("/openapi.json").status_code == 401
        document = client.get("/openapi.json", headers={"Authorization": "Bearer k"}).json()
    post = document["paths"][COMPLETE]["post"]
    assert set(post["responses"]) == {"200", "4XX", "5XX"}
    assert set(post["responses"]["200"]["content"]) == {"application/json", "text/event-stream"}
    assert post["security"]
    assert set(document["paths"]) == {COMPLETE, "/v1/models", "/v1/models/{model}", "/healthz"}


def test_a_slow_body_is_given_up(bot):
    app = create_app(bot, ServeOptions(body_seconds=0.2))

    async def dripping():
        import asyncio

        yield b"{"
        await asyncio.sleep(5)

    async def ask():
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            return await client.post(COMPLETE, content=dripping())

    import asyncio

    answer = asyncio.run(ask())
    assert answer.status_code == 408
    assert "0.2 s" in answer.json()["error"]["message"]
