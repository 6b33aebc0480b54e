"""The package: terminal, server and wheel."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import tracemalloc
from contextlib import suppress
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest
from xianliao_lite import Bot
from xianliao_lite.bot import Reply
from xianliao_lite.server import MAX_BODY, RequestError, Server, settings_of, to_turns

from tests.conftest import ROOT
from tests.lite.building import tiny_checkpoint, weights_file
from tests.processor_time import processor_seconds


def as_messages(*messages: tuple[str, object]) -> list[dict]:
    return [{"role": role, "content": content} for role, content in messages]


def test_messages_become_turns_as_the_big_server_makes_them():
    messages = as_messages(("system", "x"), ("assistant", "y"), ("user", "a"), ("user", "b"), ("assistant", "c"))
    parts = [{"type": "text", "text": "d"}, {"type": "text", "text": "e"}]
    assert to_turns([*messages, *as_messages(("user", parts))]) == ["a\nb", "c", "de"]


@pytest.mark.parametrize(
    "messages",
    [
        None,
        [],
        "x",
        [1],
        as_messages(("user", None)),
        as_messages(("tool", "x")),
        as_messages(("user", "a"), ("assistant", "b")),
    ],
)
def test_what_is_no_conversation_is_refused(messages):
    with pytest.raises(RequestError):
        to_turns(messages)


def test_many_messages_of_one_role_are_joined_once_and_bounded():
    long = [{"role": "user", "content": "长" * 500_000}, *([{"role": "user", "content": ""}] * 511)]
    assert processor_seconds(lambda: to_turns(long), 0.01) < 0.01  # 512 joins of a megabyte take 20 times as long
    assert to_turns(long) == ["长" * 500_000 + "\n" * 511]
    with pytest.raises(RequestError, match="at most 512"):
        to_turns([*long, long[-1]])


def test_temperature_zero_is_greedy():
    assert settings_of({"temperature": 0, "seed": 3, "max_tokens": 5}) == {
        "method": "greedy",
        "seed": 3,
        "max_reply_tokens": 5,
    }


@pytest.mark.parametrize("text", [5, None, []])
def test_parts_that_are_no_text_are_refused(text):
    with pytest.raises(RequestError):
        to_turns(as_messages(("user", [{"type": "text", "text": text}])))


def test_a_number_larger_than_a_float_is_refused():
    with pytest.raises(RequestError):
        settings_of({"max_tokens": 10**400})


class Echo:
    """A bot without weights."""

    name = "echo"

    def stream(self, turns, seed, **settings):
        yield Reply(turns[-1], (1,), "eos", 0.0, 0)

    def count_tokens(self, text):
        return len(text)


@pytest.fixture(scope="module")
def echo():
    server = Server(Echo(), port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server.server_address
    server.shutdown()
    server.server_close()


def exchanged(
    address: tuple[str, int], *headers: str, first: str = "POST /v1/chat/completions", body: bytes = b""
) -> list:
    """Send one request and return the statuses of all answers; the second one would be that to a hidden request."""
    lines = [f"{first} HTTP/1.1", *headers, f"Content-Length: {len(body)}"]
    with socket.create_connection(address, 5) as connection:
        connection.sendall("\r\n".join([*lines, "", ""]).encode() + body)
        connection.shutdown(socket.SHUT_WR)
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    return [int(part[:3]) for part in answer.split(b"HTTP/1.1 ")[1:]]


HIDDEN = (
    b"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 45\r\n\r\n"
    b'{"messages":[{"role":"user","content":"hi"}]}'
)


@pytest.mark.parametrize(
    ("first", "headers", "status"),
    [
        ("POST /x", ["Host: localhost", "Content-Type: text/plain"], 404),
        ("POST /v1/chat/completions", ["Host: evil.example", "Content-Type: text/plain"], 403),
        ("GET /health", ["Host: localhost"], 400),
        ("POST /v1/chat/completions", ["Host: localhost", "Content-Length: 0"], 400),
        ("POST /v1/chat/completions", ["Host: localhost", "Transfer-Encoding: chunked"], 400),
    ],
)
def test_a_body_is_never_read_as_a_request(echo, first, headers, status):
    assert exchanged(echo, *headers, first=first, body=HIDDEN) == [status]


@pytest.mark.parametrize("length", ["9" * 5000, "-1", "１", "1_0", "", "x"])
def test_a_length_that_is_no_number_is_refused_in_words(echo, length, capfd):
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    with socket.create_connection(echo, 5) as connection:
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 400")
    assert b"needs one Content-Length" in answer
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("size", [2 * MAX_BODY, 9_999_999])
def test_a_body_that_is_refused_is_never_held(echo, size, monkeypatch):
    """The piece that is read is small, and the answer does not wait for a client that sends no more."""
    monkeypatch.setattr("xianliao_lite.server.DRAIN_SECONDS", 0.5)
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    tracemalloc.start()
    try:
        with socket.create_connection(echo, 5) as connection, suppress(BrokenPipeError, ConnectionResetError):
            connection.sendall(head.encode())
            for _ in range(size // 65536 - 1):
                connection.sendall(bytes(65536))
        with socket.create_connection(echo, 5) as connection:
            connection.sendall(head.encode() + bytes(1000))
            answer = connection.recv(65536)
        assert tracemalloc.get_traced_memory()[1] < MAX_BODY
    finally:
        tracemalloc.stop()
    assert answer.startswith(b"HTTP/1.1 413")


@pytest.mark.parametrize(
    "headers",
    [
        ["Host: localhost", "Host: evil.example"],
        ["Host: localhost:@evil.example"],
        ["Host: localhost", "Origin: http://evil.example"],
        ["Host: localhost", "Origin: null"],
        ["Host: localhost", "Sec-Fetch-Site: cross-site"],
        ["Host: localhost", "Sec-Fetch-Site: same-site"],
        ["Host: localhost", "Origin: http://localhost", "Sec-Fetch-Site: cross-site"],
        ["Host: localhost", "Sec-Fetch-Site: none", "Sec-Fetch-Site: cross-site"],
        [],
    ],
)
def test_other_sites_get_nothing(echo, headers):
    body = json.dumps({"messages": as_messages(("user", "a"))}).encode()
    json_type = "Content-Type: application/json"
    assert exchanged(echo, json_type, *headers, body=body) == [403]
    assert exchanged(echo, json_type, "Host: LocalHost:80", "Origin: http://localhost:80", body=body) == [200]
    for site in ("same-origin", "none"):
        assert exchanged(echo, json_type, "Host: localhost", f"Sec-Fetch-Site: {site}", body=body) == [200]


@pytest.fixture(scope="module")
def files(library, tokenizer, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lite")
    return library, weights_file(folder, tiny_checkpoint(folder / "tiny", tokenizer))


@pytest.fixture(scope="module")
def served(files):
    library, weights = files
    bot = Bot(weights, library=library)
    server = Server(bot, port=0)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield bot, f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()


def ask(address: str, body: object, path: str = "/v1/chat/completions", **headers: str):
    content = body if isinstance(body, bytes) else json.dumps(body).encode()
    return urlopen(Request(address + path, content, {"Content-Type": "application/json", **headers}), timeout=30)


@pytest.mark.slow
def test_the_openai_client_gets_whole_and_streamed_replies(served):
    from openai import OpenAI

    bot, address = served
    client = OpenAI(base_url=f"{address}/v1", api_key="none")
    messages, expected = as_messages(("user", "你好")), bot.reply(["你好"], 7)
    whole = client.chat.completions.create(model="any", messages=messages, seed=7)
    assert whole.choices[0].message.content == expected.text
    assert whole.usage.completion_tokens == len(expected.token_ids) + 1
    chunks = list(client.chat.completions.create(model="any", messages=messages, seed=7, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == expected.text
    assert chunks[-1].choices[0].finish_reason in ("stop", "length")
    assert [model.id for model in client.models.list()] == [bot.name]
    fixed = client.chat.completions.create(model="any", messages=as_messages(("user", "我不想活了")))
    assert (fixed.choices[0].finish_reason, "12356" in fixed.choices[0].message.content) == ("content_filter", True)


@pytest.mark.slow
def test_the_server_refuses_what_it_cannot_answer(served):
    _, address = served
    good = {"messages": as_messages(("user", "你好"))}
    cases = [
        (b"{", {}, 400),
        (b"[]", {}, 400),
        ({"messages": as_messages(("user", " "))}, {}, 400),
        ({**good, "temperature": 1e9}, {}, 400),
        ({**good, "seed": -1}, {}, 400),
        ({**good, "seed": 1.5}, {}, 400),
        ({**good, "n": 2}, {}, 400),
        (b" " * (MAX_BODY + 1), {}, 413),
        (good, {"Content-Type": "text/plain"}, 415),
        (good, {"Host": "evil.example"}, 403),
    ]
    for body, headers, status in cases:
        with pytest.raises(HTTPError) as refused:
            ask(address, body, **headers)
        assert refused.value.code == status, (body, headers)
        assert json.load(refused.value)["error"]["message"].endswith(".")
    with pytest.raises(HTTPError):
        ask(address, good, "/v1/other")
    assert ask(address, good).status == 200


@pytest.mark.slow
def test_many_threads_get_the_replies_that_each_would_get_alone(files):
    library, weights = files
    bot, got = Bot(weights, library=library), {}
    alone = {seed: bot.reply(["你好"], seed).text for seed in range(12)}
    threads = [
        threading.Thread(target=lambda seed=seed: got.update({seed: bot.reply(["你好"], seed).text}))
        for seed in range(12)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert got == alone


@pytest.mark.slow
def test_the_terminal_says_replies_and_faults(files):
    library, weights = files
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT / "lite"),
        "XIANLIAO_LIBRARY": str(library),
        "PYTHONIOENCODING": "utf-8",
    }
    command = [sys.executable, "-S", "-m", "xianliao_lite", "chat", str(weights)]  # -S: no other package is there

    def run(*arguments: str, text: str = "") -> subprocess.CompletedProcess:
        return subprocess.run(
            [*command, *arguments],
            env=environment,
            input=text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=60,
        )

    expected = Bot(weights, library=library).reply(["你好"], 3).text
    assert run("--seed", "3", "--message", "你好").stdout == expected + "\n"
    talked = run("--seed", "3", text="你好\n/undo\n你好\n/quit\n")
    assert (talked.returncode, talked.stdout.count(expected)) == (0, 2)
    assert talked.stderr.count("已撤回：你好") == 1
    helped = run(text="/help\n/nonsense\n/undo\n/quit\n")
    assert (helped.stdout.strip("你: \n"), helped.stderr.count("/quit 退出")) == ("", 3)  # no command is a message
    assert run("--message", " ").returncode == 1
    missing = subprocess.run([*command[:-1], "/nowhere"], env=environment, capture_output=True, text=True, timeout=60)
    assert (missing.returncode, "Traceback" in missing.stderr) == (1, False)


@pytest.mark.slow
def test_a_wheel_chats_in_an_empty_environment(files, tmp_path):
    pytest.importorskip("ziglang", reason="wheels are built with zig: pip install ziglang")
    _, weights = files
    command = [sys.executable, str(ROOT / "lite" / "build.py"), "--output", str(tmp_path), "--target", "linux-x86_64"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]),
    }
    subprocess.run([*command, "--bot", str(weights)], env=environment, check=True, capture_output=True)
    wheel = next(tmp_path.glob("*.whl"))
    assert wheel.stat().st_size - weights.stat().st_size < 1_000_000
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python, clean = tmp_path / "venv" / "bin" / "python", {"PATH": os.environ["PATH"], "LANG": "C.UTF-8"}
    subprocess.run([python, "-m", "pip", "-q", "install", "--no-index", str(wheel)], env=clean, check=True)
    done = subprocess.run(
        [python.with_name("xianliao-lite"), "chat", "--seed", "1", "--message", "你好"],
        env=clean, cwd=tmp_path, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout == Bot(weights, library=files[0]).reply(["你好"], 1).text + "\n"
