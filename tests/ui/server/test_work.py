"""The threads for work on texts: bounded queues, separate for large and small texts, and a free event loop."""

from __future__ import annotations

import asyncio
import contextvars
import json
import threading
import time

import gradio as gr
import pytest
from fastapi.testclient import TestClient

from chatbot.chat.worker import Worker, WorkerError
from tests.processor_time import processor_seconds
from ui.api.routes import parse
from ui.api.schemas import ApiError
from ui.options import ServeOptions
from ui.page.actions import Actions
from ui.page.chats import new_chat
from ui.server import work
from ui.server.app import create_app
from ui.server.work import OverloadError, WorkPool

COMPLETE = "/v1/chat/completions"


@pytest.fixture
def pool(monkeypatch):
    monkeypatch.setattr(work, "MOST_WAITING", {"short": 3, "small": 3, "large": 1})
    pool = WorkPool()
    yield pool
    pool.close()


def test_calls_beyond_the_bound_are_refused_and_lanes_are_separate(pool):
    gate, started = threading.Event(), []
    calls = [threading.Thread(target=lambda: started.append(pool.run(10**6, gate.wait))) for _ in range(2)]
    for call in calls:
        call.start()
    while pool.waiting["large"] < 2:
        time.sleep(0.01)
    with pytest.raises(OverloadError):
        pool.run(10**6, print)
    assert (
        pool.run(10, lambda: pool.run(10**6, int, "7")) == 7
    )  # a small text does not wait; an inner call runs at once
    gate.set()
    for call in calls:
        call.join()
    assert started == [True, True]
    assert pool.waiting == {"short": 0, "small": 0, "large": 0}


def test_senders_take_turns_and_short_texts_wait_for_no_others(pool, monkeypatch):
    monkeypatch.setattr(work, "MOST_WAITING", {"short": 9, "small": 9, "large": 9})
    monkeypatch.setattr(work, "MOST_OF_SENDER", {"short": 3, "small": 3, "large": 3})
    gate, order, calls = threading.Event(), [], []

    def submit(sender, number):
        context = contextvars.copy_context()
        context.run(work.SENDER.set, sender)
        call = lambda: (gate.wait(20), order.append(f"{sender}{number}"))  # noqa: E731
        calls.append(context.run(pool._submit, 20_000, call))

    for number in range(4):
        submit("a", number)
    with pytest.raises(OverloadError):
        submit("a", 4)
    submit("b", 0)
    submit("b", 1)
    assert pool.run(2_000, int, "7") == 7
    gate.set()
    for call in calls:
        call.result(20)
    assert order in (["a0", "a1", "b0", "a2", "b1", "a3"], ["a0", "b0", "a1", "b1", "a2", "a3"])


def test_a_call_fails_as_it_would_here_and_a_closed_pool_refuses(pool):
    with pytest.raises(ValueError, match="invalid literal"):
        pool.run(1, int, "x")
    pool.close()
    with pytest.raises(WorkerError, match="shutting down"):
        pool.run(1, int, "1")
    assert pool.waiting == {"short": 0, "small": 0, "large": 0}


def test_calls_that_wait_when_the_pool_is_closed_fail_in_words(pool):
    gate = threading.Event()
    first, *waiting = [pool._submit(10, gate.wait) for _ in range(3)]
    while not first.running():
        time.sleep(0.01)
    pool.close()
    gate.set()
    assert first.result(20)
    for call in waiting:
        with pytest.raises(WorkerError, match="shutting down"):
            call.result(20)
    assert pool.waiting == {"short": 0, "small": 0, "large": 0}


def test_large_texts_of_many_clients_are_answered_in_turn_or_refused(bot, monkeypatch):
    """At most one large text is read at a time, and /healthz and small messages are answered meanwhile."""
    app = create_app(bot, ServeOptions())
    pool = app.state.limits.pool
    gate, reading, most, senders = threading.Event(), [], [], set()
    request = bot.request

    def slow_request(turns, *values, **named):
        if len(turns[-1]) > 10_000:
            reading.append(1)
            senders.add(work.SENDER.get())
            most.append(len(reading))
            gate.wait(20)
            reading.pop()
        return request(turns, *values, **named)

    monkeypatch.setattr(bot, "request", slow_request)
    large = {"messages": [{"role": "user", "content": "我不想活了" + "长" * 30_000}]}
    with TestClient(app, base_url="http://localhost") as client:
        answers = []
        threads = [
            threading.Thread(target=lambda: answers.append(client.post(COMPLETE, json=large))) for _ in range(50)
        ]
        for thread in threads:
            thread.start()
        while len(answers) + pool.waiting["large"] < 50:
            time.sleep(0.01)
        assert client.get("/healthz").status_code == 200
        small = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 2}
        assert client.post(COMPLETE, json=small).status_code == 200
        gate.set()
        for thread in threads:
            thread.join()
    statuses = sorted(answer.status_code for answer in answers)
    assert statuses == [200] * 9 + [503] * 41
    assert all(answer.headers["retry-after"] for answer in answers if answer.status_code == 503)
    assert max(most) == 1
    assert senders == {"testclient"}


def test_handlers_of_the_page_run_in_the_pool(bot, pool):
    worker = Worker(bot, run=pool.run)
    act = Actions({bot.name: worker}, ServeOptions(), None, pool)
    names = []
    try:
        act.worker = lambda model: names.append(threading.current_thread().name) or worker
        act.say(new_chat(), "你好", None, None)
        act.say(new_chat(), "长" * 25_000, None, None)
    except gr.Error:  # too long for the model
        pass
    finally:
        worker.close(0)
    assert [name.rpartition("_")[0] for name in names] == ["short-texts", "large-texts"]


HOSTILE = {
    "wrong parts": {"messages": [{"role": "user", "content": [{"type": "image", "x": 1}] * 2_300}]},
    "wrong messages": {"messages": [{"role": 1}] * 6_000},
    "wrong stops": {"messages": [{"role": "user", "content": "a"}], "stop": [1] * 30_000},
    "parts in each of many messages": {"messages": [{"role": "user", "content": [{}] * 60}] * 200},
    "numbers": {"messages": [1] * 30_000},
}


@pytest.mark.parametrize("body", HOSTILE.values(), ids=HOSTILE)
def test_a_body_with_thousands_of_faults_costs_milliseconds(body):
    text = json.dumps(body, separators=(",", ":")).encode()[: 64 * 1024]
    text = json.dumps(body, separators=(",", ":")).encode() if len(text) < 64 * 1024 else text
    assert 30_000 < len(text) <= 80_000

    def refuse() -> None:
        with pytest.raises(ApiError) as error:
            parse(json.dumps(body).encode())
        assert error.value.status == 400
        assert len(str(error.value)) < 300

    assert processor_seconds(refuse, 0.03) < 0.03


def test_large_bodies_are_parsed_in_the_pool(bot, monkeypatch):
    threads = []
    monkeypatch.setattr(
        "ui.api.routes.parse", lambda body: threads.append(threading.current_thread().name) or parse(body)
    )
    with TestClient(create_app(bot, ServeOptions()), base_url="http://localhost") as client:
        small = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 1}
        assert client.post(COMPLETE, json=small).status_code == 200
        assert client.post(COMPLETE, json={**small, "metadata": ["x" * 30_000]}).status_code == 200
    assert threads[0] != threads[1]
    assert threads[1].startswith("large-texts")


def test_a_client_that_leaves_frees_its_place(pool):
    gate = threading.Event()

    async def scenario():
        calls = [asyncio.create_task(pool.run_async(1, gate.wait)) for _ in range(4)]
        await asyncio.sleep(0.05)
        assert pool.waiting["short"] == 4
        for call in calls[1:]:
            call.cancel()
        await asyncio.sleep(0.05)
        assert pool.waiting["short"] == 1
        gate.set()
        assert await calls[0]

    asyncio.run(scenario())
