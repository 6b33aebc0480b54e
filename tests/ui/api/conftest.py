"""A server with a tiny bot and a key, and the official client."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import openai
import pytest

from chatbot.chat.bot import Chatbot
from tests.chat_models import write_chat_model
from ui.cli import listen
from ui.options import ServeOptions
from ui.server.app import create_app
from ui.server.process import Server

HELLO = [{"role": "user", "content": "你好"}]
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def server(checkpoint):
    """A real server on a free port, with a key: its address, a bot like its own, and its app."""
    with serving(checkpoint) as parts:
        yield parts


@pytest.fixture(scope="module")
def chat_folder(dialogues, tmp_path_factory):
    """Function that writes a tiny chat model of a kind, with the EOS floor of the tiny bot, and returns its folder."""

    def write(kind: str) -> Path:
        folder = tmp_path_factory.mktemp(kind) / "tiny"
        write_chat_model(folder, [turn for turns in dialogues for turn in turns], kind)
        floor = {"floor_start_tokens": 12, "floor_delta_tokens": 4}
        (folder / "generation_config.json").write_text(json.dumps(floor))
        return folder

    return write


@contextmanager
def serving(checkpoint: Path) -> Iterator[tuple]:
    """Serve a checkpoint until the end of the block; see `server`."""
    app = create_app(Chatbot.from_pretrained(checkpoint), ServeOptions(api_keys=("secret",)))
    listener, server = listen("127.0.0.1", 0), Server(app)
    address = f"http://127.0.0.1:{listener.getsockname()[1]}"
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield address, Chatbot.from_pretrained(checkpoint), app
    server.should_exit = True
    thread.join(10)
    assert not thread.is_alive()


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=server[0] + "/v1", api_key="secret", max_retries=0) as client:
        yield client
