"""The runtime, built once per session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.lite.building import built_library


@pytest.fixture(scope="session")
def library(tmp_path_factory) -> Path:
    return built_library(tmp_path_factory.mktemp("library"))
