"""The middleware that keeps a browser with one replica of Ray Serve; test_deploy.py tries it with Ray."""

from __future__ import annotations

import subprocess
import sys

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from tests.conftest import ROOT
from ui.server.ray_seats import middlewares

SEAT = "0123456789abcdef" * 2


async def show(request: Request) -> JSONResponse:
    """Answer with the headers that choose the replica."""
    headers = {"Set-Cookie": "session=of-the-page"}
    return JSONResponse(request.headers.getlist("x-conversation-id"), headers=headers)


@pytest.fixture
def client() -> TestClient:
    methods = ["GET", "POST"]
    return TestClient(Starlette(routes=[Route("/{path:path}", show, methods=methods)], middleware=middlewares()))


def test_a_browser_keeps_the_seat_of_its_first_request(client):
    first = client.get("/")
    assert first.headers.get_list("set-cookie")[0] == "session=of-the-page"  # the page's cookies stay
    assert "HttpOnly" in first.headers.get_list("set-cookie")[1]
    (seat,) = first.json()
    for path in ("/config", "/gradio_api/queue/data?session_hash=a", "/assets/x.js"):
        answer = client.get(path)
        assert answer.json() == [seat]
        assert "xianliao_seat" not in answer.headers["set-cookie"]
    assert client.post("/gradio_api/queue/join").json() == [seat]


def test_browsers_get_different_seats(client):
    seats = set()
    for _ in range(20):
        client.cookies.clear()
        seats.add(client.get("/").json()[0])
    assert len(seats) == 20


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/models", "/metrics", "/healthz"])
def test_the_api_stays_as_it_is(client, path):
    assert client.get(path, headers={"X-Conversation-Id": "mine"}).json() == ["mine"]
    client.cookies["xianliao_seat"] = SEAT
    answer = client.get(path)
    assert answer.json() == []
    assert "xianliao_seat" not in answer.headers["set-cookie"]


@pytest.mark.parametrize("cookie", ["", "x", SEAT + "0", SEAT.upper(), "坏".encode(), 'a"; ' * 500])
def test_a_cookie_that_is_not_ours_is_replaced(client, cookie):
    value = cookie if isinstance(cookie, bytes) else cookie.encode()
    answer = client.get("/", headers={"Cookie": b"xianliao_seat=" + value})
    (seat,) = answer.json()
    assert len(seat) == 32
    assert seat != SEAT
    assert f"xianliao_seat={seat};" in answer.headers["set-cookie"]


def test_the_cookie_decides_for_the_page(client):
    client.cookies["xianliao_seat"] = SEAT
    assert client.get("/", headers={"X-Conversation-Id": "other"}).json() == [SEAT]


def test_the_proxy_does_not_load_torch():
    """Ray waits a few seconds for its proxy; with torch it also needed 360 MB more."""
    code = "import sys, ui.server.ray_seats; print({'torch', 'gradio', 'transformers', 'chatbot'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
