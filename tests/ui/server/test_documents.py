"""The document of the page is written once, is the one that Gradio writes, and holds nothing of a user or a client."""

from __future__ import annotations

import gradio.routes
import pytest
from fastapi.testclient import TestClient

from ui.options import ServeOptions
from ui.server import documents
from ui.server.app import create_app

USERS = (("ann", "pw"), ("bob", "pw"))


def client_of(bot, **options) -> TestClient:
    return TestClient(create_app(bot, ServeOptions(**options)), base_url="http://localhost")


@pytest.fixture
def written(monkeypatch) -> list[str]:
    """Paths of the documents that Gradio has written."""
    paths, write = [], gradio.routes.templates.TemplateResponse

    def count(*arguments, **named):
        paths.append(named["request"].url.path)
        return write(*arguments, **named)

    monkeypatch.setattr(gradio.routes.templates, "TemplateResponse", count)
    return paths


@pytest.mark.parametrize("path", ["/", "/config", "/config/"])
@pytest.mark.parametrize("auth", [(), USERS])
def test_a_document_that_is_kept_is_the_one_that_gradio_writes(bot, path, auth, monkeypatch):
    headers = [
        {"Host": "127.0.0.1:7901"},
        {"Host": "[::1]:8080", "X-Forwarded-Proto": "https"},
        {"Host": "localhost", "Accept-Language": "zh", "Accept-Encoding": "br", "Cookie": "a=b"},
    ]
    with client_of(bot, auth=auth) as client:
        answers = [client.get(path, headers=each) for each in headers * 2]
        monkeypatch.setattr(documents, "PATHS", ())
        for answer, each in zip(answers, headers * 2, strict=True):
            expected = client.get(path, headers=each)
            assert answer.status_code == expected.status_code
            assert answer.text == expected.text
            assert answer.headers["content-type"] == expected.headers["content-type"]


def test_gradio_writes_the_page_once(bot, written):
    with client_of(bot) as client:
        for number in range(5):
            headers = {"Host": f"10.0.0.{number}", "Cookie": f"a={number}", "Accept-Language": "zh"}
            answer = client.get(f"/?__theme={number}&session_hash={number}", headers=headers)
            assert f"http://10.0.0.{number}" in answer.text
            assert client.head("/", headers=headers).headers["content-length"] == answer.headers["content-length"]
    assert written == ["/"]


def test_no_header_of_a_client_gets_into_the_page_of_another(bot):
    names = ("X-Gradio-Server", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "Forwarded", "Cookie")
    with client_of(bot) as client:
        for path in documents.PATHS:
            for _ in range(2):
                answer = client.get(path, headers=dict.fromkeys(names, "http://evil.example"))
                assert answer.status_code == 200
                assert "evil" not in answer.text


@pytest.mark.parametrize("order", [("ann", "bob", None), (None, "ann", "bob"), ("bob", None, "ann")])
def test_no_user_gets_the_page_of_another(bot, order):
    with client_of(bot, auth=USERS) as client:
        cookies = {}
        for name, password in USERS:
            client.cookies.clear()
            assert client.post("/login", data={"username": name, "password": password}).status_code == 200
            cookies[name] = "; ".join(f"{key}={value}" for key, value in client.cookies.items())
        client.cookies.clear()
        for name in order * 2:
            text = client.get("/", headers={"Cookie": cookies[name]} if name else {}).text
            assert ('"auth_required":true' in text) is (name is None)
            assert [user for user, _ in USERS if f'"username":"{user}"' in text] == [name] * (name is not None)
        twice = client.get("/", headers=[("Cookie", "a=b"), ("Cookie", cookies["ann"])]).text  # one of them counts
        assert "ann" not in twice or '"username":"ann"' in client.get("/", headers={"Cookie": cookies["ann"]}).text
        assert '"auth_required":true' in client.get("/").text
