"""The log: equal lines are throttled, and no client writes its own lines into it."""

from __future__ import annotations

import json
import logging
import sys
import threading

import httpx
import pytest
from fastapi.testclient import TestClient

from ui.api import streams
from ui.cli import listen
from ui.options import ServeOptions
from ui.server import logs
from ui.server.app import create_app
from ui.server.logs import EqualLines, LineFormatter
from ui.server.process import Server

BROKEN = (
    "a\r\nINFO forged line",
    "\x1b[31mred\x1b[0m\x1b]0;title\x07",
    "\u202eright to left\u202c\u2066",
    "\u2028second\u2029line\x85third\x0b\x0c\x00\x9b31m",
    "\ud800",
)


@pytest.fixture
def written(monkeypatch):
    lines = []
    monkeypatch.setattr(
        logs, "log_event", lambda event, level="info", failure=None, **fields: lines.append((event, level, fields))
    )
    return lines


def test_equal_lines_of_a_client_are_counted_and_not_written(written):
    now = [0.0]
    lines = EqualLines(per_minute=3, clock=lambda: now[0])
    for second in range(50):
        now[0] = second
        lines.log("1.2.3.4", "request", "warning", status=404, seconds=second / 1000)
    assert len(written) == 3
    lines.log("5.6.7.8", "request", "warning", status=404, seconds=0.1)  # another client
    lines.log("1.2.3.4", "request", "warning", status=413, seconds=0.1)  # another line
    assert len(written) == 5
    now[0] = 60
    lines.log("5.6.7.8", "request", "warning", status=400)
    assert written[5:] == [
        ("request", "warning", {"status": "404", "equal_lines": 47}),
        ("request", "warning", {"status": 400}),
    ]
    lines.log("1.2.3.4", "request", "warning", status=404)
    assert len(written) == 8


def test_the_count_is_written_when_the_server_closes_and_when_there_are_too_many_clients(written, monkeypatch):
    lines = EqualLines(per_minute=1, clock=lambda: 0.0)
    for _ in range(3):
        lines.log("a", "request", status=404)
    lines.finish()
    assert written[1:] == [("request", "info", {"status": "404", "equal_lines": 2})]
    monkeypatch.setattr(logs, "MAX_COUNTED_LINES", 2)
    for client in "aabc":
        lines.log(client, "request", status=404)
    assert written[-2] == ("request", "info", {"status": "404", "equal_lines": 1})
    assert len(lines._counts) == 2


def test_thousands_of_refused_requests_leave_a_few_lines(bot, caplog):
    caplog.set_level(logging.INFO)
    app = create_app(bot, ServeOptions(rate_limit=0))
    with TestClient(app, base_url="http://localhost") as client:
        for number in range(200):
            assert client.get(f"/v1/nowhere{number}").status_code == 404
    app.state.limits.refused_lines.finish()
    request_lines = [
        record.fields for record in caplog.records if record.name == "xianliao.serve" and record.msg == "request"
    ]
    assert len(request_lines) == logs.EQUAL_LINES_PER_MINUTE + 1
    assert request_lines[-1]["equal_lines"] == 200 - logs.EQUAL_LINES_PER_MINUTE
    assert not any("nowhere" in str(fields) for fields in request_lines)


def test_replies_that_fail_leave_a_few_lines(bot, caplog, monkeypatch):
    monkeypatch.setattr(streams, "FAILURES", EqualLines())
    app = create_app(bot, ServeOptions(rate_limit=0))
    with TestClient(app, base_url="http://localhost") as client:
        monkeypatch.setattr(streams.Replies, "_advance", lambda self, index: raise_reported(ValueError("x")))
        for _ in range(50):
            answer = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "你好"}]})
            assert answer.status_code == 500
    failure_lines = [record for record in caplog.records if record.msg == "a reply failed"]
    assert len(failure_lines) == logs.EQUAL_LINES_PER_MINUTE


def test_requests_on_which_the_server_fails_leave_a_few_lines(bot, tmp_path, monkeypatch):
    """uvicorn writes a line with the stack for each of them."""
    monkeypatch.setattr(logs, "FAILURES", EqualLines())
    monkeypatch.setattr("ui.api.routes.Api.models", lambda self: 1 / 0)
    root = logging.getLogger()
    with open(tmp_path / "stderr", "w") as stderr:
        monkeypatch.setattr(sys, "stderr", stderr)
        handler = logs.start_log("json")
        listener = listen("127.0.0.1", 0)
        server = Server(create_app(bot, ServeOptions()))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        try:
            thread.start()
            for _ in range(50):  # each on a connection of its own, because uvicorn closes it
                answer = httpx.get(f"http://127.0.0.1:{listener.getsockname()[1]}/v1/models")
                assert answer.json()["error"]["code"] == "failed"
        finally:
            server.should_exit = True
            thread.join(10)
            logs.FAILURES.finish()
            handler.finish(10)
            root.removeHandler(handler)
    lines = [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines()]
    error_lines = [line for line in lines if line.get("logger") == "uvicorn.error"]
    assert len(error_lines) == logs.EQUAL_LINES_PER_MINUTE + 1
    assert error_lines[0]["error"] == "ZeroDivisionError"
    assert error_lines[0]["where"]
    assert error_lines[-1]["equal_lines"] == 50 - logs.EQUAL_LINES_PER_MINUTE


def raise_reported(error: BaseException):
    raise streams._reported(error)


@pytest.mark.parametrize("as_json", [True, False])
@pytest.mark.parametrize("text", BROKEN)
def test_a_text_in_a_line_begins_no_other_and_moves_no_cursor(text, as_json):
    record = logging.LogRecord("xianliao.serve", logging.INFO, "", 0, text, None, None)
    record.fields = {"model": text, "message": text}
    line = LineFormatter(as_json).format(record)
    assert line.isprintable()
    if as_json:
        assert json.loads(line)["model"] == text


def test_what_a_client_sends_in_headers_paths_and_names_is_not_logged(bot, caplog):
    caplog.set_level(logging.INFO)
    with TestClient(create_app(bot, ServeOptions()), base_url="http://localhost") as client:
        for text in ("forged%0d%0aline", "%1b[31mforged", "%E2%80%AEforged"):
            for call in (
                lambda text=text: client.get(f"/v1/{text}"),
                lambda text=text: client.get(f"/{text}"),
                lambda text=text: client.get(
                    "/", headers={"X-Forwarded-Host": text, "User-Agent": text, "Cookie": text}
                ),
                lambda text=text: client.get("/", headers={"Host": text}),
                lambda text=text: client.get("/", headers={"Origin": f"http://{text}"}),
                lambda text=text: client.request("FORGED", "/v1/models"),
                lambda text=text: client.post("/login", data={"username": text, "password": text}),
                lambda text=text: client.post(
                    "/v1/chat/completions",
                    json={"model": f"forged\r\n{text}", "messages": [{"role": text, "content": "a"}]},
                ),
            ):
                assert call().status_code in (200, 400, 403, 404, 405, 421, 422)
    lines = [LineFormatter(False).format(record) for record in caplog.records if not record.name.startswith("httpx")]
    assert lines
    assert not [line for line in lines if "forged" in line.lower()]
