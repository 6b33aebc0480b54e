"""Files of a folder from elsewhere: only regular files are opened, and never one that could keep the program waiting."""

from __future__ import annotations

import os
import threading

import pytest

from chatbot.checkpoint.location import read_beginning
from chatbot.errors import CheckpointError
from chatbot.storage import open_regular, read_header, read_json

pytestmark = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")


def in_time(function, *arguments, seconds: float = 5):
    """Return what a function returns or raises; a function that waits fails the test instead of ending it."""
    results: list[object] = []

    def run():
        try:
            results.append(function(*arguments))
        except Exception as error:
            results.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert results, "the function waits"
    return results[0]


@pytest.mark.parametrize("kind", ["pipe", "link to a pipe", "device"])
def test_what_is_not_a_regular_file_is_refused_at_once(tmp_path, kind):
    path = tmp_path / "config.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    else:
        os.mkfifo(tmp_path / "pipe")
        path.symlink_to("pipe")
    error = in_time(read_json, path)
    assert isinstance(error, CheckpointError)
    assert "cannot be read (it is not a regular file); copy" in str(error)
    assert isinstance(in_time(read_header, path), OSError)
    assert in_time(read_beginning, path, 4) == b""


@pytest.mark.parametrize("target", ["../secret.json", "linked/secret.json", "linked/missing.json"])
def test_a_link_that_leaves_the_folder_is_not_opened(tmp_path, target):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret.json").write_text("{}")
    (folder / "linked").symlink_to(tmp_path)
    (folder / "config.json").symlink_to(target)
    (folder / "own.json").write_text("{}")
    (folder / "alias.json").symlink_to("own.json")
    for mode in ("rb", "r+b", "ab"):
        with pytest.raises(OSError, match="a link that leaves its folder"):
            open_regular(folder / "config.json", folder, mode)
    with open_regular(folder / "alias.json", folder) as file:
        assert file.read() == b"{}"
