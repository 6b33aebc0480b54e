"""A server with a tiny bot and a key, and the official client."""

from __future__ import annotations

import threading
import time

import openai
import pytest

from chatbot.chat.bot import Chatbot
from ui.cli import listen
from ui.options import ServeOptions
from ui.server.app import create_app
from ui.server.process import Server

HELLO = [{"role": "user", "content": "你好"}]
KEY = {"Authorization": "Bearer secret"}


@pytest.fixture(scope="module")
def server(checkpoint):
    """A real server on a free port, with a key: its address, a bot like its own, and its app."""
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
