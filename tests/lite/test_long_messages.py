"""A long message is checked in time linear in its length, and other clients do not wait for it."""

from __future__ import annotations

import json
import threading
import time
from contextlib import suppress
from urllib.request import Request, urlopen

import pytest
from xianliao_lite import Bot, LiteError
from xianliao_lite.bot import Reply
from xianliao_lite.server import LONG_CHARACTERS, Server

from tests.lite.building import QUICKLY, built_library, tiny_checkpoint, weights_file


@pytest.fixture(scope="module")
def bot(tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long")
    return Bot(
        weights_file(folder, tiny_checkpoint(folder / "tiny", tokenizer)),
        library=built_library(folder, kernels=QUICKLY),
    )


@pytest.mark.parametrize(
    "phrase",
    [
        "屈原投湖",
        "投湖屈原",
        "割手腕",
        "手腕割",
        "跳必死",
        "电影遗书",
        "我啊想啊死",
        "k!ll ",
        "死",
        "《自杀》",
        "kill me ",
    ],
)
def test_a_phrase_repeated_in_500_000_characters_takes_about_half_a_second(bot, phrase):
    message = (phrase * 500_000)[:500_000]
    started = time.process_time()
    with suppress(LiteError):  # the message is too long, unless it gets a fixed reply
        next(bot.stream([message], 1))
    taken = time.process_time() - started
    assert taken < 2, f"{taken:.1f} s"  # measured: 0.1 to 0.6 s


class Reading:
    """A bot that reads a long history until it is told to end."""

    name = "reading"

    def __init__(self):
        self.begins, self.ends = threading.Event(), threading.Event()

    def stream(self, turns, seed, **settings):
        if len(turns[0]) > LONG_CHARACTERS:
            self.begins.set()
            self.ends.wait(20)
        return iter([Reply("好", (1,), "eos", 0.0, 0)])

    def count_tokens(self, text):
        return len(text)


def test_no_client_waits_while_the_long_message_of_another_is_read():
    bot = Reading()
    server = Server(bot, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    statuses = []

    def ask(text: str) -> None:
        body = json.dumps({"messages": [{"role": "user", "content": text}]}).encode()
        request = Request(f"http://127.0.0.1:{server.server_address[1]}/v1/chat/completions", body)
        request.add_header("Content-Type", "application/json")
        statuses.append(urlopen(request, timeout=10).status)

    long = threading.Thread(target=ask, args=["好" * (LONG_CHARACTERS + 1)])
    try:
        long.start()
        assert bot.begins.wait(10)
        ask("你好")
        assert statuses == [200]
        bot.ends.set()
        long.join(10)
        assert statuses == [200, 200]
    finally:
        bot.ends.set()
        server.shutdown()
        server.server_close()


def test_a_history_is_read_before_the_reply_is_decoded(bot):
    with pytest.raises(LiteError):
        bot.stream([" "], 1)
    replies = bot.stream(["你好"], 1)
    assert [*replies][-1] == bot.reply(["你好"], 1)
    bot.stream(["你好"], 1)  # never decoded: its conversation is given back
