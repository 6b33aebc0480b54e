"""The compiled library is loaded only from a folder and a file that no other user can write."""

from __future__ import annotations

import os
import sys

import pytest

from chatbot.native import library

pytestmark = pytest.mark.skipif(library.library() is None or sys.platform == "win32", reason="no C compiler here")


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache folder, and libraries that are looked for anew."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(
        library, "FLAGS", ("-pthread", "-O0")
    )  # built in a second; what it computes is tested elsewhere
    monkeypatch.setattr(library, "TARGETS", ((),))
    library.library.cache_clear()
    yield tmp_path / "xianliao"
    library.library.cache_clear()


def test_the_folder_is_private(cache):
    before = os.umask(0)
    try:
        assert library.library() is not None
    finally:
        os.umask(before)
    assert cache.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("writable", ["folder", "file"])
def test_what_others_can_write_is_not_loaded(cache, writable):
    assert library.library() is not None
    (built,) = cache.glob("step-*.so")
    (cache if writable == "folder" else built).chmod(0o777)
    library.library.cache_clear()
    with pytest.warns(UserWarning, match="other users"):
        assert library.library() is None


@pytest.mark.skipif(not hasattr(os, "getuid") or os.getuid() != 0, reason="only root can give a file away")
def test_a_library_of_another_user_is_not_loaded(cache):
    assert library.library() is not None
    (built,) = cache.glob("step-*.so")
    os.chown(built, 65534, 65534)
    library.library.cache_clear()
    with pytest.warns(UserWarning, match="other users"):
        assert library.library() is None


def test_a_library_without_our_symbols_is_not_an_error(cache, monkeypatch):
    monkeypatch.setattr(library.ctypes.c_int64, "in_dll", lambda *_: (_ for _ in ()).throw(ValueError("no symbol")))
    assert library.library() is None
