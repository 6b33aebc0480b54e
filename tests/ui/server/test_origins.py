"""Hosts, origins and frames that the server accepts, by headers; test_browser_origins tries them in a browser."""

from __future__ import annotations

from contextlib import contextmanager

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from chatbot import Chatbot
from chatbot.errors import XianliaoError
from ui.options import ServeOptions
from ui.server.app import create_app
from ui.server.origins import Origins, lax, read_hosts, read_origins

HELLO = {"messages": [{"role": "user", "content": "你好"}], "seed": 5}
APP = "https://app.example.com"
JOIN = {"data": [None] * 3, "fn_index": 0, "session_hash": "s"}


@contextmanager
def client_of(bot, tmp_path, **options):
    with TestClient(create_app(bot, ServeOptions(data_dir=tmp_path, **options)), base_url="http://localhost") as client:
        yield client


@pytest.fixture(scope="module")
def client(checkpoint, tmp_path_factory):
    with client_of(Chatbot.from_pretrained(checkpoint), tmp_path_factory.mktemp("data")) as client:
        yield client


@pytest.fixture(scope="module")
def allowing(checkpoint, tmp_path_factory):
    options = {"allow_origins": (APP,), "hosts": ("chat.lan",), "api_keys": ("k",), "auth": (("ann", "pw"),)}
    with client_of(Chatbot.from_pretrained(checkpoint), tmp_path_factory.mktemp("data"), **options) as client:
        yield client


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:7860", "127.0.0.1:7860", "[::1]:7860", "192.168.1.5:7860", "localhost."]
)
def test_own_names_and_addresses_are_answered(client, host):
    assert client.get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "evil.example:7860",
        "localhost.evil.example",
        "127.0.0.1.evil.example",
        "",
        "a b",
        "x:y:z",
        "chat.lan",
    ],
)
@pytest.mark.parametrize("path", ["/", "/config", "/v1/models", "/healthz", "/metrics"])
def test_other_names_are_refused(client, host, path):
    answer = client.get(path, headers={"Host": host})
    assert answer.status_code == 421
    assert "--allow-host" in answer.text


def test_a_rebound_name_reaches_no_function(client):
    for path, body in (("/gradio_api/queue/join", JOIN), ("/v1/chat/completions", HELLO)):
        assert client.post(path, json=body, headers={"Host": "evil.example"}).status_code == 421


def test_a_name_is_added_by_an_option(allowing):
    assert allowing.get("/healthz", headers={"Host": "chat.lan:80"}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "ftp://localhost"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
        {"Sec-Fetch-Site": "same-origin", "Origin": "http://evil.example"},
        {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document", "Origin": "null"},
    ],
)
def test_other_sites_change_and_compute_nothing(client, allowing, headers):
    for server in (client, allowing):
        for path, body in (
            ("/gradio_api/queue/join", JOIN),
            ("/v1/chat/completions", HELLO),
            ("/gradio_api/cancel", {}),
        ):
            answer = server.post(path, json=body, headers=headers)
            assert answer.status_code == 403, (path, headers)
            assert "access-control-allow-origin" not in answer.headers
        login = server.post("/login", data={"username": "ann", "password": "pw"}, headers=headers)
        assert login.status_code == 403
        assert "set-cookie" not in login.headers


@pytest.mark.parametrize("site", ["same-origin", "none", None])
def test_the_own_page_and_scripts_are_answered(client, site):
    headers = {"Sec-Fetch-Site": site} if site else {}
    if site == "same-origin":
        headers["Origin"] = "http://localhost"
    assert client.post("/v1/chat/completions", json=HELLO, headers=headers).status_code == 200
    inputs = client.get("/config").json()["dependencies"][0]["inputs"]
    body = {**JOIN, "data": [None] * len(inputs)}
    assert client.post("/gradio_api/queue/join", json=body, headers=headers).status_code == 200


def test_an_own_page_behind_tls_is_answered(allowing):
    headers = {
        "Host": "chat.lan",
        "Origin": "https://chat.lan",
        "Authorization": "Bearer k",
        "Sec-Fetch-Site": "same-origin",
    }
    assert allowing.post("/v1/chat/completions", json=HELLO, headers=headers).status_code == 200


def test_a_link_from_elsewhere_opens_the_page_and_a_frame_does_not(client):
    link = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}
    assert client.get("/", headers=link).status_code == 200
    assert client.get("/config", headers=link).status_code == 403
    assert client.get("/", headers={**link, "Sec-Fetch-Dest": "iframe"}).status_code == 403


@pytest.mark.parametrize("origin", ["http://evil.example", "null", APP])
def test_no_cors_unless_asked_for(client, origin):
    for host in ("localhost", "127.0.0.1", "192.168.1.5:7860"):
        preflight = {"Origin": origin, "Host": host, "Access-Control-Request-Method": "POST"}
        for path in ("/", "/config", "/v1/chat/completions", "/gradio_api/queue/join"):
            answer = client.options(path, headers=preflight)
            assert answer.status_code >= 400
            assert not [name for name in answer.headers if name.startswith("access-control")]
            answer = client.get(path, headers={"Origin": origin, "Host": host})
            assert not [name for name in answer.headers if name.startswith("access-control")]


def test_cors_for_an_allowed_origin(allowing):
    preflight = {
        "Origin": APP,
        "Access-Control-Request-Method": "POST",
        "Access-Control-Request-Headers": "authorization,content-type,x-stainless-lang",
        "Access-Control-Request-Private-Network": "true",
        "Sec-Fetch-Site": "cross-site",
    }
    answer = allowing.options("/v1/chat/completions", headers=preflight)
    assert answer.status_code == 204
    assert answer.headers["access-control-allow-origin"] == APP
    assert answer.headers["access-control-allow-headers"] == "authorization,content-type,x-stainless-lang"
    assert answer.headers["access-control-allow-private-network"] == "true"
    assert "access-control-allow-credentials" not in answer.headers
    request = {"Origin": APP, "Sec-Fetch-Site": "cross-site", "Authorization": "Bearer k"}
    answer = allowing.post("/v1/chat/completions", json=HELLO, headers=request)
    assert answer.status_code == 200
    assert answer.headers["access-control-allow-origin"] == APP
    assert "X-Conversation-Id" in answer.headers["access-control-expose-headers"]
    assert "Origin" in answer.headers["vary"]
    refused = allowing.post("/v1/chat/completions", json=HELLO, headers={**request, "Authorization": "Bearer wrong"})
    assert refused.status_code == 401
    assert refused.headers["access-control-allow-origin"] == APP  # the application can read why
    for path in ("/config", "/gradio_api/queue/join", "/metrics"):
        answer = allowing.options(path, headers=preflight)
        assert answer.status_code >= 400
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("path", ["/", "/v1/models", "/healthz", "/metrics", "/nothing", "/theme.css", "/config"])
def test_every_answer_has_the_security_headers(client, path):
    answer = client.get(path)
    assert answer.headers["x-frame-options"] == "DENY"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.headers["referrer-policy"] == "same-origin"
    assert "frame-ancestors 'none'" in answer.headers["content-security-policy"]
    assert len(answer.headers.get_list("content-security-policy")) == 1


def test_cookies_are_lax(allowing):
    answer = allowing.post("/login", data={"username": "ann", "password": "pw"})
    cookies = answer.headers.get_list("set-cookie")
    assert cookies
    for cookie in cookies:
        assert cookie.lower().count("samesite=lax") == 1
        assert "none" not in cookie.lower().split(";", 1)[1]
        assert "httponly" in cookie.lower()
    assert lax(b"a=b; Path=/; SameSite=None; Secure") == b"a=b; Path=/; Secure; SameSite=Lax"


def test_a_forwarded_host_changes_nothing(client):
    plain = client.get("/config").json()
    assert client.get("/config", headers={"X-Forwarded-Host": "evil.example"}).json()["root"] == plain["root"]


def test_two_host_headers_are_refused():
    scope_headers = Headers(raw=[(b"host", b"localhost"), (b"host", b"evil.example")])
    with pytest.raises(Exception, match="Host"):
        Origins().check_host(scope_headers)


def test_a_body_where_none_belongs_is_not_read(client):
    answer = client.request("GET", "/healthz", content=b"x" * 1000)
    assert answer.status_code == 400
    assert answer.headers["connection"] == "close"


@pytest.mark.parametrize("value", ["app.example.com", "https://app.example.com/x", "*", "null", "https://", "ftp://a"])
def test_origins_of_the_option_are_checked(value):
    with pytest.raises(XianliaoError, match="--allow-origin"):
        read_origins([value])


def test_hosts_of_the_option_are_checked():
    assert read_hosts(["Chat.Lan"], "0.0.0.0") == {"chat.lan", "0.0.0.0"}
    assert read_hosts([], "::1") == frozenset()
    assert read_origins(["https://App.example.com/"]) == {APP}
    for value in ("https://chat.lan", "chat.lan:80", "a b", ""):
        with pytest.raises(XianliaoError, match="--allow-host"):
            read_hosts([value], "127.0.0.1")
