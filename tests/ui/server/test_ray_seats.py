"""The middleware that keeps browsers and conversations with one replica of Ray Serve; test_deploy.py tries it with Ray."""

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
from ui.server.ray_seats import ReplicaName, middlewares, split_replica

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


async def converse(request: Request) -> JSONResponse:
    """Answer as the API does: with the name of the conversation, or with one of its own."""
    name = request.headers.get("x-conversation-id")
    return JSONResponse(name, headers={"X-Conversation-Id": name or "hash"})


@pytest.fixture
def cluster() -> TestClient:
    """The proxy in front of replica r1, and of r2 at paths that begin with /v1/two or /two."""
    routes = [Route("/v1/{path:path}", converse), Route("/{path:path}", show)]
    first, second = (ReplicaName(Starlette(routes=routes), replica) for replica in ("r1", "r2"))

    async def proxied(scope, receive, send):
        await (second if "two" in scope["path"] else first)(scope, receive, send)

    (middleware,) = middlewares()
    return TestClient(middleware.cls(proxied, *middleware.args, **middleware.kwargs))


def test_an_answer_of_the_api_names_its_replica(cluster):
    assert cluster.get("/v1/x").headers["x-conversation-id"] == "hash@replica-r1"
    for sent in ("mine", "mine@replica-r1", "mine@replica-dead"):
        answer = cluster.get("/v1/two", headers={"X-Conversation-Id": sent})
        assert answer.json() == "mine"  # the server sees the name alone
        assert answer.headers["x-conversation-id"] == "mine@replica-r2"
    assert cluster.get("/v1/x", headers={"X-Conversation-Id": "@replica-r2"}).json() is None


def test_the_cookie_names_the_replica_that_answered(cluster):
    first = cluster.get("/")
    (seat,) = first.json()
    assert cluster.cookies["xianliao_seat"] == f"{seat}@replica-r1"
    assert "x-conversation-id" not in first.headers
    again = cluster.get("/config")
    assert again.json() == [seat]
    assert "xianliao_seat" not in again.headers["set-cookie"]
    moved = cluster.get("/two")  # the replica was removed
    assert moved.json() == [seat]
    assert cluster.cookies["xianliao_seat"] == f"{seat}@replica-r2"


@pytest.mark.parametrize(
    ("value", "split"),
    [
        ("mine@replica-k3j9x2ab", ("mine", "k3j9x2ab")),
        ("@replica-r1", ("", "r1")),
        ("a@replica-r1@replica-r2", ("a@replica-r1", "r2")),
        *((name, (name, None)) for name in ("", "mine", "a@b.c", "a@replica-", "a@replica-R1", "a@replica-r1 b")),
    ],
)
def test_the_replica_is_the_end_of_the_value(value, split):
    assert split_replica(value) == split


def test_the_proxy_does_not_load_torch():
    """Ray waits a few seconds for its proxy; with torch it also needed 360 MB more."""
    code = "import sys, ui.server.ray_seats; print({'torch', 'gradio', 'transformers', 'chatbot'} & sys.modules.keys())"
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "set()"
