"""What a client can leave in Gradio's queue: events, results and inputs that no browser reads."""

from __future__ import annotations

import asyncio
import json
import logging
from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from fastapi.testclient import TestClient
from gradio.server_messages import EstimationMessage, ProcessCompletedMessage, ProcessGeneratingMessage
from starlette.routing import Mount

from ui.api.schemas import ApiError
from ui.options import ServeOptions
from ui.page import actions, layout, queue
from ui.page.chat_files import from_text
from ui.page.queue import BoundedQueue, Output
from ui.server.app import create_app
from ui.server.logs import EQUAL_LINES_PER_MINUTE, EqualLines
from ui.server.page_routes import checked_body

JOIN, DATA = "/gradio_api/queue/join", "/gradio_api/queue/data"


@contextmanager
def page(bot, auth=()):
    """A client of a server, its queue, and a function that calls `begin` with a chat of a number of characters."""
    app = create_app(bot, ServeOptions(auth=auth))
    with TestClient(app, base_url="http://localhost") as client:
        if auth:
            log_in(client, auth[0])
        functions = {part["api_name"]: part["id"] for part in client.get("/config").json()["dependencies"]}
        event_queue = (
            next(route.app for route in app.routes if isinstance(route, Mount) and hasattr(route.app, "get_blocks"))
            .get_blocks()
            ._queue
        )

        def call(session: str, characters: int = 10) -> int:
            chat = {"id": "", "title": "", "persona": [], "messages": [{"role": "user", "text": "长" * characters}]}
            body = {"data": [chat], "fn_index": functions["begin"], "session_hash": session}
            return client.post(JOIN, json=body).status_code

        yield client, event_queue, call


def log_in(client: TestClient, pair: tuple[str, str]) -> None:
    client.cookies.clear()
    assert client.post("/login", data=dict(zip(("username", "password"), pair, strict=True))).status_code == 200


def settle(event_queue: BoundedQueue, client: TestClient) -> None:
    """Wait until no event runs."""
    for _ in range(200):
        if not event_queue.event_ids_to_events:
            return
        client.portal.call(asyncio.sleep, 0.05)
    raise AssertionError("events are still running")


def test_results_that_no_browser_reads_are_bounded(bot, monkeypatch):
    monkeypatch.setattr(queue, "MAX_SESSION_BYTES", 4_000_000)
    monkeypatch.setattr(queue, "MAX_BYTES", 8_000_000)
    with page(bot) as (client, event_queue, call):
        statuses = []
        for number in range(30):  # about 1.8 MB of results each
            statuses.append(call(f"s{number % 6}", 300_000))
            settle(event_queue, client)
            assert event_queue.held.bytes <= 8_000_000
        assert set(statuses) <= {200, 503}
        assert 200 in statuses
        sizes = [
            len(json.dumps(item.model_dump(), default=str))
            for each in event_queue.sessions.values()
            for item in each._queue
        ]
        assert sum(sizes) < 8_000_000
        assert len(event_queue.sessions) <= 6


def test_events_of_one_session_and_sessions_are_bounded(bot, monkeypatch):
    monkeypatch.setattr(queue, "MAX_SESSION_EVENTS", 3)
    monkeypatch.setattr(queue, "MAX_SESSIONS", 2)
    with page(bot) as (client, event_queue, call):
        assert [call("a") for _ in range(5)] == [200] * 3 + [503] * 2
        settle(event_queue, client)
        assert [call(name) for name in ("b", "c", "b")] == [200, 503, 200]
        assert sorted(event_queue.sessions) == ["a", "b"]


def test_a_session_without_a_reader_is_dropped_after_a_minute(bot):
    with page(bot) as (client, event_queue, call):
        assert call("gone") == 200
        settle(event_queue, client)
        late = event_queue.now() + queue.UNREAD_SECONDS + 1
        event_queue.now = lambda: late
        assert call("new") == 200
        settle(event_queue, client)
        client.portal.call(event_queue.drop_unread)
        assert list(event_queue.sessions) == ["new"]
        assert list(event_queue.pending_event_ids_session) == ["new"]
        assert event_queue.held.bytes == event_queue.sessions["new"].held
        assert client.get(DATA, params={"session_hash": "gone"}).status_code == 404


def test_a_browser_that_reads_gets_every_result(bot):
    with page(bot) as (client, event_queue, call):
        assert call("s", 1_000) == 200
        with client.stream("GET", DATA, params={"session_hash": "s"}) as stream:
            events = [json.loads(line[6:]) for line in stream.iter_lines() if line.startswith("data: ")]
        done = next(event for event in events if event["msg"] == "process_completed")
        assert done["success"]
        assert "长" * 1_000 in json.dumps(done["output"]["data"], ensure_ascii=False)
        assert events[-1]["msg"] == "close_stream"
        settle(event_queue, client)
        assert event_queue.held.bytes == 0


def test_a_conversation_as_the_browser_has_it(bot):
    """Every output goes to the browser as JSON and comes back as it went: two messages, two replies."""
    with page(bot) as (client, _, _):
        parts = {part["api_name"]: part for part in client.get("/config").json()["dependencies"]}
        chat = {"id": "", "title": "", "persona": [], "messages": []}
        for number, text in enumerate(("你好", "今天累了"), 1):
            chat["messages"].append({"role": "user", "text": text})
            body = {"data": [chat], "fn_index": parts["begin"]["id"], "session_hash": f"s{number}"}
            assert client.post(JOIN, json=body).status_code == 200
            with client.stream("GET", DATA, params={"session_hash": f"s{number}"}) as events:
                for line in events.iter_lines():
                    event = json.loads(line[6:]) if line.startswith("data: ") else {}
                    if event.get("msg") == "process_completed":
                        break
            assert event["success"]
            for value in event["output"]["data"]:
                assert not (isinstance(value, str) and value.startswith("root="))
            (chat,) = (value for value in event["output"]["data"] if isinstance(value, dict) and "messages" in value)
        assert [message["text"] for message in chat["messages"] if message["role"] == "user"] == ["你好", "今天累了"]


def test_the_server_keeps_no_conversation_of_a_tab(bot):
    with page(bot) as (client, event_queue, call):
        for number in range(3):
            assert call(f"tab{number}", 50_000) == 200
        settle(event_queue, client)
        states = event_queue.server_app.state_holder
        assert sorted(states.session_data) == ["tab0", "tab1", "tab2"]
        values = repr([state.config_values for state in states.session_data.values()])
        assert "长" * 100 not in values
        assert states.capacity < 1_000


@pytest.mark.parametrize("query", [{"session_hash": "nobody"}, {}])
def test_results_of_an_unknown_session_are_not_found(bot, query, caplog):
    with page(bot) as (client, _, _):
        answer = client.get(DATA, params=query)
        assert answer.status_code == 404
        assert "session" in answer.json()["error"]["message"]
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_session_that_is_dropped_while_it_is_read_ends_its_stream(bot, caplog):
    with page(bot) as (client, event_queue, call):
        assert call("s") == 200
        settle(event_queue, client)
        event_queue.pending_event_ids_session["s"].add("still running")  # so that the stream waits for more
        check = event_queue.pending_messages_per_session.__class__.__getitem__
        reads = []

        def read(self, name):
            reads.append(name)
            if len(reads) == 2:
                event_queue.forget("s")
            return check(self, name)

        event_queue.pending_messages_per_session.__class__.__getitem__ = read
        try:
            with client.stream("GET", DATA, params={"session_hash": "s"}) as stream:
                text = "".join(stream.iter_text())
        finally:
            event_queue.pending_messages_per_session.__class__.__getitem__ = check
        assert "Reload the page" in text
        assert "close_stream" in text
    assert not [record for record in caplog.records if record.levelname == "ERROR"]


def test_the_session_with_the_most_results_loses_them(bot, monkeypatch):
    monkeypatch.setattr(queue, "MAX_BYTES", 1_000)

    async def scenario():
        event_queue = BoundedQueue(
            live_updates=True, concurrency_count=1, update_intervals=1, max_size=None, blocks=SimpleNamespace()
        )
        for name, size in (("small", 300), ("large", 650), ("small", 300)):
            event_queue.sessions.setdefault(name, event_queue.new_session())
            event = SimpleNamespace(session_hash=name, alive=True, _id=name)
            event_queue.send_message(event, ProcessCompletedMessage(output={"data": "x" * (size - 202)}, success=True))
        assert event_queue.sessions["large"].get_nowait().msg == "unexpected_error"
        first = event_queue.sessions["small"].get_nowait()
        assert isinstance(first.output, Output)
        assert first.output.size == 100
        event_queue.send_message(event, EstimationMessage(queue_size=1))
        event_queue.forget("small")
        event_queue.forget("large")
        assert event_queue.held.bytes == 0

    asyncio.run(scenario())


@pytest.mark.parametrize("value", ["\ud800", 10**30])
def test_a_result_that_is_not_json_ends_its_event(value):
    event_queue = BoundedQueue(
        live_updates=False,
        concurrency_count=1,
        update_intervals=1,
        max_size=None,
        blocks=None,
        default_concurrency_limit=1,
    )
    session = event_queue.sessions["a"] = event_queue.new_session()
    event = SimpleNamespace(session_hash="a", alive=True, _id="e")
    event_queue.send_message(event, ProcessGeneratingMessage(output={"data": [value]}, success=True))
    assert session.empty()
    event_queue.send_message(event, ProcessCompletedMessage(output={"data": [value]}, success=True))
    message = session.get_nowait()
    assert (message.success, message.event_id, message.output["error"]) == (False, "e", queue.FAILED)


def test_no_client_can_make_such_a_result():
    body = b'{"data": ["\\ud800", {"\\udfff": 1}, 1' + b"0" * 30 + b"]}"
    text, key, number = json.loads(checked_body(JOIN, "application/json", body))["data"]
    assert (text, list(key), number) == ("?", ["?"], 1e30)
    with pytest.raises(ApiError):
        checked_body(JOIN, "application/json", b'{"data": [1' + b"0" * 400 + b"]}")
    file = '{"messages": [{"role": "assistant", "text": "a", "model": "\\ud800", "seed": 1' + "0" * 30 + "}]}"
    (message,) = from_text(file)["messages"]
    assert "seed" not in message
    assert message["model"].encode("utf-8", "strict")


def test_a_user_reads_and_fills_only_sessions_of_her_own(bot):
    users = (("ann", "pw"), ("ben", "pw"))
    with page(bot, auth=users) as (client, event_queue, call):
        assert call("hers") == 200
        settle(event_queue, client)
        log_in(client, users[1])
        assert client.get(DATA, params={"session_hash": "hers"}).status_code == 404
        assert call("hers") == 503
        assert call("his") == 200
        settle(event_queue, client)
        log_in(client, users[0])
        with client.stream("GET", DATA, params={"session_hash": "hers"}) as stream:
            assert any('"success":true' in line for line in stream.iter_lines())


def test_results_that_a_log_out_leaves_unread_are_dropped(bot):
    user = ("ann", "pw")
    with page(bot, auth=(user,)) as (client, event_queue, call):
        assert call("hers") == 200
        settle(event_queue, client)
        assert client.post("/logout", headers={"Origin": "http://localhost"}).status_code == 204
        assert not event_queue.sessions
        assert event_queue.held.bytes == 0
        log_in(client, user)
        assert client.get(DATA, params={"session_hash": "hers"}).status_code == 404


def test_malformed_events_leave_a_few_lines(bot, caplog, monkeypatch):
    """Neither an event that Gradio cannot read nor one that fails in a handler fills the disk."""
    lines = EqualLines()
    for module in (layout, actions):
        monkeypatch.setattr(module, "FAILURES", lines)
    monkeypatch.setattr(queue, "MAX_SESSION_EVENTS", 1000)
    caplog.set_level(logging.INFO)
    with page(bot) as (client, event_queue, _):
        parts = {part["api_name"]: part for part in client.get("/config").json()["dependencies"]}
        number = parts["give_reasons"]["id"]
        for data in ([None, ["x"], [], ""], [None, None, 5, ""]):
            for _ in range(25):
                body = {"data": data, "fn_index": number, "session_hash": "s"}
                assert client.post(JOIN, json=body).status_code == 200
            settle(event_queue, client)
    lines.finish()
    written = [record for record in caplog.records if record.levelno >= logging.ERROR]
    failures = {record.getMessage() for record in written}
    assert failures == {"the page failed", "an event of the page failed"}
    assert len(written) == 2 * (EQUAL_LINES_PER_MINUTE + 1)
    assert any(record.exc_info for record in written)
    assert any(getattr(record, "fields", {}).get("equal_lines") for record in written)
