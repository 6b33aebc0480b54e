"""The training view is there only when it was asked for, and only for this machine."""

from __future__ import annotations

import pytest
from starlette.datastructures import Headers
from starlette.testclient import TestClient

from ui.api.schemas import ApiError
from ui.cli import main
from ui.options import ServeOptions
from ui.server.app import create_app
from ui.studio.options import StudioOptions, check_local

LOCAL = ("127.0.0.1", 50000)


def client_of(bot, folder, client=LOCAL, host="localhost", studio=True) -> TestClient:
    options = ServeOptions(data_dir=folder, studio=StudioOptions(folder / "studio") if studio else None)
    return TestClient(create_app(bot, options), base_url=f"http://{host}", client=client)


def test_without_the_option_the_page_has_no_training_view(bot, tmp_path):
    with client_of(bot, tmp_path, studio=False) as client:
        config = client.get("/config").text
        assert "open_result" not in config
        assert "x-studio" not in client.get("/").text
    with client_of(bot, tmp_path) as client:
        assert "open_result" in client.get("/config").text
        assert "x-studio" in client.get("/").text
    assert not (tmp_path / "project.json").exists()


REFUSED = [
    (("192.168.1.9", 50000), "localhost", {}),
    (("8.8.8.8", 50000), "127.0.0.1", {}),
    (("testclient", 50000), "localhost", {}),
    (LOCAL, "192.168.1.2", {}),
    (LOCAL, "chat.example.com", {}),
    (LOCAL, "", {}),
    (LOCAL, "localhost", {"X-Forwarded-For": "8.8.8.8"}),
    (LOCAL, "localhost", {"X-Forwarded-For": "127.0.0.1"}),
    (LOCAL, "localhost", {"Forwarded": "for=8.8.8.8"}),
    (LOCAL, "localhost", {"X-Real-IP": "8.8.8.8"}),
    (LOCAL, "localhost", {"Via": "1.1 proxy"}),
]


@pytest.mark.parametrize(("client", "host", "headers"), REFUSED)
def test_a_request_from_elsewhere_is_refused(client, host, headers):
    with pytest.raises(ApiError, match="its own machine") as refusal:
        check_local({"client": client}, Headers({"host": host, **headers}))
    assert refusal.value.status == 403


@pytest.mark.parametrize("client", [LOCAL, ("::1", 1)])
@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:7860", "[::1]:7860", "127.0.0.2"])
def test_this_machine_is_answered(client, host):
    check_local({"client": client}, Headers({"host": host}))


def test_every_route_is_for_this_machine(bot, tmp_path):
    paths = [
        ("GET", "/"),
        ("GET", "/config"),
        ("GET", "/v1/models"),
        ("GET", "/healthz"),
        ("POST", "/gradio_api/queue/join"),
    ]
    with client_of(bot, tmp_path) as server:
        assert server.get("/").status_code == 200
        for method, path in paths:
            for headers in ({"Via": "1.1 proxy"}, {"Host": "192.168.1.2"}):
                answer = server.request(method, path, headers=headers)
                assert answer.status_code == 403, path
                assert "its own machine" in answer.text


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--host", "0.0.0.0"], "Leave out --host"),
        (["--allow-host", "chat.example.com"], "without a proxy"),
        (["--host", "0.0.0.0", "--auth", "ann:pw"], "Leave out --host"),
    ],
)
def test_the_command_refuses_to_show_it_to_others(tmp_path, capsys, arguments, message):
    with pytest.raises(SystemExit, match="2"):
        main(["--port", "0", "--studio", str(tmp_path / "studio"), *arguments])
    assert message in capsys.readouterr().err
    assert not (tmp_path / "studio").exists()
