"""`make docs` writes an API reference with the public names and their docstrings."""

from __future__ import annotations

import html
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PUBLIC = {
    "chatbot/chat/bot.html": ["Chatbot.from_pretrained", "Chatbot.reply", "Chatbot.stream", "Chatbot.respond"],
    "chatbot/chat/session.html": ["ChatSession.reply", "ChatSession.undo", "ChatSession.edit"],
    "chatbot/decoding/settings.html": ["ReplySettings.temperature", "ReplySettings.with_changes"],
    "chatbot/decoding/hf_generate.html": ["reply_processors"],
    "data_prep/pipeline.html": ["build"],
    "training/run.html": ["train"],
    "ui/server/app.html": ["create_app"],
}


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> Path:
    if shutil.which("make") is None:
        pytest.skip("make is not installed")
    folder = tmp_path_factory.mktemp("docs")
    command = [
        "make",
        "docs",
        f"DOCS={folder}",
        f"BIN={Path(sys.executable).parent}",
        "--old-file=.venv/.installed-docs",
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    assert "does not resolve" not in result.stderr
    return folder


@pytest.mark.parametrize("page", PUBLIC)
def test_the_reference_has_the_public_names(pages, page):
    text = (pages / page).read_text(encoding="utf-8")
    assert [name for name in PUBLIC[page] if f'id="{name}"' not in text] == []


def test_the_reference_shows_the_docstrings(pages):
    from chatbot.chat.session import ChatSession

    shown = " ".join(html.unescape(re.sub("<[^>]*>", "", (pages / "chatbot/chat/session.html").read_text())).split())
    assert ChatSession.undo.__doc__.split("\n")[0] in shown


def test_every_module_has_a_page(pages):
    modules = {
        path.relative_to(ROOT).with_suffix(".html")
        for room in ("chatbot", "data_prep", "training", "ui")
        for path in (ROOT / room).rglob("*.py")
        if path.name not in ("__init__.py", "__main__.py", "ray_app.py")
    }
    assert {path for path in modules if not (pages / path).is_file()} == set()
