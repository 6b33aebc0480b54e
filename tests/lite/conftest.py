"""The runtime, built once per session."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from filelock import FileLock

from tests.lite.building import built_library


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    """The runtime; the processes of pytest-xdist share one build."""
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "library"
    folder.mkdir(exist_ok=True)
    with FileLock(folder / "lock"):
        built = folder / "xianliao.so"
        return built if built.is_file() else built_library(folder)
