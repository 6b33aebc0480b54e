"""A server that HF_ENDPOINT names, or a name that somebody else gave, leads to no file outside the hub's cache."""

from __future__ import annotations

from contextlib import suppress

import pytest

from chatbot.checkpoint.hub import is_hub_name
from chatbot.checkpoint.location import resolve
from chatbot.errors import CheckpointError
from tests.chatbot.checkpoint.test_hub import NAME, hub, source  # noqa: F401
from tests.hub_server import Hub


@pytest.mark.parametrize("header", ["ETag", "X-Linked-Etag", "X-Repo-Commit"])
@pytest.mark.parametrize(
    "value", ["{folder}/stolen", '"{folder}/stolen"', "../../../stolen", '"../../../stolen"', "a/b", ".."]
)
def test_a_header_of_a_server_names_no_file(hub: Hub, tmp_path, header, value):  # noqa: F811
    hub.headers = {header: value.format(folder=tmp_path)}
    with pytest.raises(CheckpointError, match="Cannot download") as refusal:
        resolve(NAME)
    assert "\n" not in str(refusal.value)
    assert not list(tmp_path.rglob("stolen*"))
    assert not list((tmp_path / "cache").rglob("blobs/*"))


@pytest.mark.parametrize("commit", ["../../../../outside", "/outside", "..", ""])
def test_a_commit_of_a_server_names_no_folder(hub: Hub, source, tmp_path, commit):  # noqa: F811
    (tmp_path / "outside").mkdir()
    commit = commit.replace("/outside", f"{tmp_path}/outside") if commit.startswith("/") else commit
    hub.models[NAME] = {commit: source}
    hub.branches[NAME] = {"main": commit}
    with pytest.raises(CheckpointError):
        resolve(NAME)


@pytest.mark.parametrize("file", ["model-/../../../../stolen-of-1.safetensors", "backward/../../../../../stolen"])
def test_a_file_of_a_server_leaves_no_cache(hub: Hub, source, tmp_path, monkeypatch, file):  # noqa: F811
    """The list of files is the server's."""
    answer = hub.answer

    def with_file(target):
        status, headers, body = answer(target)
        if "/resolve/" in target and status == 404:
            return 200, {"X-Repo-Commit": hub.branches[NAME]["main"], "ETag": '"abc"'}, b"evil"
        return status, headers, body.replace(b'"generation_config.json"', f'"{file}"'.encode())

    monkeypatch.setattr(hub, "answer", with_file)
    with suppress(CheckpointError):
        resolve(NAME)
    assert not list(tmp_path.rglob("stolen*"))


@pytest.mark.parametrize(
    "name",
    [
        "a/b@../../x",
        "a/b@x/../../y",
        "a/b@..",
        "a/b..c",
        "a../b",
        "../b",
        "a/..",
        "a/b@x\n",
        "a/b/c",
        "a/b@",
        "-a/b",
        "a/b@x y",
    ],
)
def test_a_name_leads_out_of_no_cache(name):
    assert not is_hub_name(name)


@pytest.mark.parametrize("tag", ['W/"5bd582fa28cd7143f2f9c852e08e23089d677c44"', '"5bd582fa-12"', '"a+b="'])
def test_the_usual_headers_pass(hub: Hub, monkeypatch, tag):  # noqa: F811
    """Answers of the hub's API have tags in Base64, which may have a slash; they name no file."""
    hub.headers, answer = {"ETag": tag}, hub.answer

    def with_tag(target):
        status, headers, body = answer(target)
        return status, ({**headers, "ETag": 'W/"1f-k/+x="'} if "/api/" in target else headers), body

    monkeypatch.setattr(hub, "answer", with_tag)
    assert resolve(NAME).parent.name == "snapshots"
