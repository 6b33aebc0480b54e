"""No client names a file of the server: every input of every function of the page is tried with a canary."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from chatbot.chat.bot import Chatbot
from chatbot.decoding.settings import ReplySettings
from tests.chatbot.model.test_latent import latent_model
from ui.api.schemas import ApiError
from ui.json_bounds import MAX_MARKS
from ui.options import ServeOptions
from ui.server.app import create_app
from ui.server.page_routes import ROUTES, check_files, checked_body
from ui.studio.options import StudioOptions
from ui.studio.studio import EMPTY

JOIN = "/gradio_api/queue/join"
SECRET = "canary-5f1d"
BASIC = {"Authorization": "Basic YW5uOnB3"}


def tree(*folders: Path) -> dict[str, bytes]:
    """All files below some folders."""
    return {
        str(path): path.read_bytes()
        for folder in folders
        if folder.exists()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def served(bot, kind: str, data_dir: Path):
    """A client of a plain, --auth or --api-key server, logged in where the page asks for it."""
    options = {
        "plain": ServeOptions(data_dir=data_dir),
        "latent": ServeOptions(data_dir=data_dir),
        "auth": ServeOptions(data_dir=data_dir, auth=(("ann", "pw"),)),
        "api-key": ServeOptions(data_dir=data_dir, api_keys=("k",)),
        "studio": ServeOptions(data_dir=data_dir, studio=StudioOptions(data_dir.parent / "studio")),
    }[kind]
    app = create_app(bot, options)
    local = ("127.0.0.1", 1)
    with TestClient(app, base_url="http://localhost", raise_server_exceptions=False, client=local) as client:
        if kind == "auth":
            assert client.post("/login", data={"username": "ann", "password": "pw"}).status_code == 200
        yield client, app


def shapes(path: Path) -> list[object]:
    """A file as Gradio describes it, bare and where a careless check might not look."""
    file = {"path": str(path), "meta": {"_type": "gradio.FileData"}, "orig_name": "x.json", "size": 1}
    return [
        file,
        {**file, "is_stream": True},
        [[file, "x"]],
        {"id": "", "title": file, "persona": [], "messages": [{"role": "user", "text": file}]},
        {"text": "x", "files": [file]},
        {"__type__": "update", "value": file},
        {"path": f"http://127.0.0.1:9/{SECRET}", "meta": {"_type": "gradio.FileData"}},
        {"url": "/x", "path": str(path), "meta": {"_type": "gradio.FileData"}},
    ]


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Gradio's folder for files, empty."""
    folder = tmp_path / "gradio-cache"
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    return folder


@pytest.fixture(scope="module")
def plain(model, tokenizer, tmp_path_factory):
    """A client of one plain server for all requests that leave nothing on it."""
    folder = tmp_path_factory.mktemp("plain")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GRADIO_TEMP_DIR", str(folder / "gradio-cache"))
        with served(Chatbot(model, tokenizer, ReplySettings()), "plain", folder / "data") as (client, _):
            yield client


@pytest.mark.parametrize("kind", ["plain", "latent", "auth", "api-key", "studio"])
def test_a_named_file_reaches_no_function(bot, tokenizer, kind, tmp_path, cache):
    bot = Chatbot(latent_model(tokenizer), tokenizer, ReplySettings()) if kind == "latent" else bot
    canaries = [tmp_path / "canary.json", tmp_path / "canary.md"]
    for canary in canaries:
        canary.write_text(json.dumps({"messages": [{"role": "user", "text": SECRET}]}))
    with served(bot, kind, tmp_path / "data") as (client, app):
        before = tree(tmp_path)
        functions = client.get("/config").json()["dependencies"]
        names = {function["api_name"] for function in functions}
        assert ("open_result" in names) is (kind == "studio")
        assert ({"encode", "reply_at"} <= names) is (kind == "latent")
        assert len(functions) > 30
        tried = 0
        for function in functions:
            if not function["backend_fn"]:
                continue
            count = len(function["inputs"])
            for position in range(max(1, count)):
                for shape in shapes(canaries[tried % 2]):
                    data: list[object] = [None] * count
                    body = {"data": data, "fn_index": function["id"], "session_hash": "s", "event_data": None}
                    if count:
                        data[position] = shape
                    else:
                        body["event_data"] = shape
                    answer = client.post("/gradio_api/queue/join", json=body)
                    assert answer.status_code == 400, (function["id"], shape, answer.text)
                    assert SECRET not in answer.text
                    tried += 1
        assert tried > 300
        if kind == "studio":
            assert app.state.studio._record == EMPTY
        assert tree(tmp_path) == before
    assert tree(cache) == {}


@pytest.mark.parametrize("kind", ["plain", "auth", "api-key"])
def test_gradio_itself_refuses_a_file_that_nobody_uploaded(bot, kind, tmp_path, cache, monkeypatch):
    """The second lock, with the first one open."""
    monkeypatch.setattr("ui.server.page_routes.names_file", lambda value: False)
    canary = tmp_path / "canary.json"
    canary.write_text(SECRET)
    with served(bot, kind, tmp_path / "data") as (client, _):
        functions = client.get("/config").json()["dependencies"]
        target = next(each for each in functions if each["backend_fn"] and len(each["inputs"]) == 2)
        data = [{"id": "", "title": "", "persona": [], "messages": []}, shapes(canary)[0]]
        body = {"data": data, "fn_index": target["id"], "session_hash": "s"}
        assert client.post("/gradio_api/queue/join", json=body).status_code == 200
        with client.stream("GET", "/gradio_api/queue/data?session_hash=s") as stream:
            text = "".join(stream.iter_text())
    assert '"success":false' in text.replace(" ", "")
    assert SECRET not in text
    assert canary.exists()
    assert tree(cache) == {}


CLOSED = (
    ("GET", "/gradio_api/file={path}"),
    ("HEAD", "/gradio_api/file={path}"),
    ("GET", "/file={path}"),
    ("GET", "/gradio_api/file/{path}"),
    ("GET", "/gradio_api/proxy=http://127.0.0.1:9/"),
    ("GET", "/gradio_api/stream/a/b/0/playlist-file"),
    ("GET", "/gradio_api/upload_progress?upload_id=a"),
    ("GET", "/gradio_api/deep_link?session_hash=s"),
    ("GET", "/gradio_api/runs"),
    ("GET", "/gradio_api/dev/reload"),
    ("GET", "/gradio_api/token"),
    ("GET", "/monitoring"),
    ("GET", "/custom_component/x/server/component/{path}"),
    ("GET", "/assets/../../{path}"),
    ("GET", "/static/%2e%2e/%2e%2e/{path}"),
    ("POST", "/gradio_api/upload"),
    ("POST", "/upload"),
    ("POST", "/gradio_api/run/predict"),
    ("POST", "/gradio_api/api/predict"),
    ("POST", "/gradio_api/call/show_list"),
    ("POST", "/gradio_api/process_recording"),
    ("POST", "/gradio_api/vibe-edit"),
    ("POST", "/gradio_api/component_server"),
    ("PUT", "/"),
    ("DELETE", "/gradio_api/queue/join"),
)


@pytest.mark.parametrize(("method", "path"), CLOSED)
def test_routes_that_the_page_does_not_use_are_closed(plain, method, path, tmp_path):
    canary = tmp_path / "canary.txt"
    canary.write_text(SECRET)
    answer = plain.request(method, path.format(path=canary))
    assert answer.status_code in (404, 405), path
    assert SECRET not in answer.text


def test_every_route_of_gradio_is_named_or_closed(bot, tmp_path):
    """A new version of Gradio with new routes opens none of them."""
    with served(bot, "plain", tmp_path) as (_, app):
        inner = next(route.app for route in app.routes if getattr(route, "path", None) == "")
    nested = [
        route for part in inner.routes for route in getattr(getattr(part, "original_router", None), "routes", [part])
    ]
    routes = {(method, route.path) for route in nested for method in getattr(route, "methods", None) or ()}
    open_routes = {
        (method, path)
        for method, path in routes
        if (rule := ROUTES.get("GET" if method == "HEAD" else method)) and rule[0].fullmatch(path.rstrip("/") or "/")
    }
    posts = {path.rstrip("/") for method, path in open_routes if method == "POST"}
    assert posts == {"/login", "/gradio_api/queue/join", "/gradio_api/cancel", "/gradio_api/reset"}
    assert len(routes) > len(open_routes) + 40


@pytest.mark.parametrize("kind", ["plain", "studio"])
def test_the_page_opens_no_heartbeat_so_the_route_is_closed(bot, kind, tmp_path):
    with served(bot, kind, tmp_path / "data") as (client, _):
        assert client.get("/config").json()["connect_heartbeat"] is False
        assert client.get("/gradio_api/heartbeat/abc").status_code == 404


NO_FILES = (
    "a" * 256,
    "a" * 900,
    "img/" + "b" * 300,
    "a%00b",
    "字" * 90,
    "img/logo.svg/x",
    "a b",
    "a%0Ab",
    "%20",
)


@pytest.mark.parametrize("name", NO_FILES)
@pytest.mark.parametrize("folder", ["static", "assets"])
def test_a_name_that_is_no_file_is_not_found(plain, name, folder):
    assert plain.get(f"/{folder}/{name}").status_code == 404


@pytest.mark.parametrize("number", [errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EIO])
def test_a_file_that_the_system_refuses_is_not_found(plain, number, monkeypatch):
    def refuse(*_):
        raise OSError(number, "refused")

    monkeypatch.setattr("gradio.route_utils.routes_safe_join", refuse)
    for path in ("/static/img/logo.svg", "/assets/a.js", "/favicon.ico"):
        assert plain.get(path).json()["error"]["code"] == "not_found"


def test_uploads_leave_nothing(bot, tmp_path, cache):
    """Neither a whole multipart body nor one without its end gets a place on the disk."""
    whole = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"x" * 100_000
    headers = {"Content-Type": "multipart/form-data; boundary=b"}
    with served(bot, "plain", tmp_path / "data") as (client, _):
        for path in ("/gradio_api/upload", "/gradio_api/queue/join", "/login", "/v1/chat/completions"):
            for body in (whole + b"\r\n--b--\r\n", whole):
                assert client.post(path, content=body, headers=headers).status_code in (400, 404, 413, 415, 422)
    assert tree(cache, tmp_path / "tmp", tmp_path / "data") == {}


def test_state_saved_for_links_is_not_read(bot, tmp_path, cache):
    folder = cache / "deep_links" / "abc"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(json.dumps([{"id": 1, "value": SECRET}]))
    with served(bot, "plain", tmp_path / "data") as (client, _):
        for path in ("/?deep_link=abc", "/config?deep_link=abc"):
            answer = client.get(path)
            assert answer.status_code == 200
            assert SECRET not in answer.text
            assert '"deep_link_state": "valid"' not in answer.text


@pytest.mark.parametrize(
    ("value", "names"),
    [
        ({"data": [{"role": "user", "text": "path"}]}, False),
        ({"data": [["path", "_type"]]}, False),
        ({"data": [{"path": "/x"}]}, True),
        ({"data": [{"a": [{"b": {"meta": {"_type": "gradio.FileData"}}}]}]}, True),
        ([[[{"is_stream": False}]]], True),
        ("path", False),
    ],
)
def test_what_names_a_file(value, names):
    if not names:
        check_files(value)
        return
    with pytest.raises(ApiError, match="no files"):
        check_files(value)


def test_a_body_of_very_many_values_is_refused():
    for value in ([0] * MAX_MARKS, [[[]] * (MAX_MARKS // 2)] * 2, {"data": [{"a": "b"}] * MAX_MARKS}):
        if value == [0] * MAX_MARKS:  # one bracket and one comma less than values
            checked_body(JOIN, "application/json", json.dumps(value).encode())
            value = [*value, 0]
        with pytest.raises(ApiError, match="at most"):
            checked_body(JOIN, "application/json", json.dumps(value).encode())


@pytest.mark.parametrize("body", [b"", b"{", b"[" * MAX_MARKS, b'{"a": NaN}', b"\xff\xfe"])
def test_broken_bodies_are_refused_in_words(body):
    with pytest.raises(Exception, match="JSON"):
        checked_body("/gradio_api/queue/join", "application/json", body)


def test_gradio_reads_the_value_that_was_checked():
    """Of two equal keys json keeps the last one; whatever another parser keeps, it sees only that one."""
    double = b'{"data": [{"path": "/etc/passwd"}], "data": []}'
    assert checked_body("/gradio_api/queue/join", "application/json; charset=utf-8", double) == b'{"data":[]}'


def test_the_page_needs_no_folder_of_files(bot, tmp_path, cache):
    with served(bot, "plain", tmp_path / "data") as (client, _):
        assert client.get("/").status_code == 200
    assert not os.path.exists(cache) or tree(cache) == {}


@pytest.mark.parametrize(
    ("method", "path", "body", "status"),
    [
        ("POST", "/gradio_api/queue/join", {"data": [], "fn_index": 0, "session_hash": "x" * 65}, 400),
        ("POST", "/gradio_api/cancel", {"session_hash": "../a", "event_id": "e"}, 400),
        ("GET", "/gradio_api/queue/data?session_hash=" + "x" * 5000, None, 400),
        ("GET", "/assets/" + "a" * 3000, None, 404),
        ("POST", "/healthz", {"a": 1}, 405),
    ],
)
def test_what_the_page_would_not_send_is_refused(plain, method, path, body, status):
    assert plain.request(method, path, json=body).status_code == status


def test_unknown_keys_of_a_call_are_not_kept():
    body = json.dumps({"data": [], "fn_index": 0, "session_hash": "s", "more": "x" * 100_000}).encode()
    assert len(checked_body("/gradio_api/queue/join", "application/json", body)) < 100


def test_a_broken_origin_is_refused_and_a_strange_method_is_not_logged(bot, tmp_path, caplog):
    with served(bot, "plain", tmp_path) as (client, _):
        assert client.get("/v1/models", headers={"Origin": "http://["}).status_code == 403
        client.request("SECRET-NAME", "/x")
    assert "SECRET-NAME" not in caplog.text
