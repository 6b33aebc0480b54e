"""The server as a process: how it starts, ends, dies and comes back; and a thousand malformed bodies."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import psutil
import pytest

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import resolve
from tests.conftest import ROOT
from tests.ui.serving import HELLO, client_of, endless_checkpoint, reply_of, serving
from ui.cli import listen
from ui.server.app import create_app
from ui.server.process import Server

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def endless(tmp_path_factory) -> Path:
    return endless_checkpoint(tmp_path_factory.mktemp("checkpoint"))


def send_message(address: str, session: str) -> None:
    """Ask for a reply without end, as an open tab does."""
    config = httpx.get(f"{address}/config", timeout=30).json()
    (function,) = [part for part in config["dependencies"] if part["api_name"] == "answer"]
    chat = {"id": "", "title": "", "persona": [], "system": "", "messages": [{"role": "user", "text": "你好"}]}
    body = {"data": [chat, "endless", "", 0.8, 0.9], "fn_index": function["id"], "session_hash": session}
    assert httpx.post(f"{address}/gradio_api/queue/join", json=body, timeout=30).status_code == 200


def listen_to(address: str, session: str) -> None:
    """Read the reply as long as the server sends it."""
    try:
        with httpx.stream("GET", f"{address}/gradio_api/queue/data?session_hash={session}", timeout=30) as response:
            for _ in response.iter_raw():
                pass
    except httpx.TransportError:
        pass


@pytest.mark.alone
@pytest.mark.parametrize("signal_number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_server_within_five_seconds(signal_number, endless, tmp_path):
    """With a reply that would go on for minutes, tabs, half requests, and a short reply that may end."""
    with serving(tmp_path, "--checkpoint", str(endless), "default") as (address, process):
        port = int(address.rpartition(":")[2])
        for session in ("abc", "def"):
            send_message(address, session)
            threading.Thread(target=listen_to, args=(address, session), daemon=True).start()
        half = [socket.create_connection(("127.0.0.1", port)) for _ in range(4)]
        half[1].sendall(b"POST /v1/chat/completions HTTP/1.1\r\n")
        half[2].sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n{")
        received, short = [], []
        begun, both_begun = threading.Event(), threading.Event()

        def talk():
            with client_of(address) as client:
                try:
                    for chunk in client.chat.completions.create(model="endless", messages=HELLO, stream=True):
                        received.append(chunk.choices[0].delta.content)
                        begun.set()
                except openai.APIError as error:
                    received.append(error)

        def talk_briefly():
            with client_of(address) as client:
                for chunk in client.chat.completions.create(model="default", messages=HELLO, n=8, stream=True):
                    short.append(chunk.choices[0])
                    both_begun.set()

        talkers = [threading.Thread(target=each) for each in (talk, talk_briefly)]
        talkers[0].start()
        assert begun.wait(30)
        talkers[1].start()
        assert both_begun.wait(30)
        started = time.monotonic()
        process.send_signal(signal_number)
        time.sleep(0.5)
        refused = httpx.get(f"{address}/v1/models", timeout=5)
        assert refused.status_code == 503
        assert refused.headers["retry-after"]
        assert "shutting down" in refused.json()["error"]["message"]
        assert process.wait(timeout=10) == 0
        assert time.monotonic() - started <= 5
        for talker in talkers:
            talker.join(5)
        assert len(received) > 5
        assert isinstance(received[-1], openai.APIError)
        assert "shutting down" in str(received[-1])
        assert short[-1].finish_reason == "stop"
        lines = [json.loads(line) for line in (tmp_path / "stderr").read_text().splitlines()]
        assert [line["event"] for line in lines if line["event"] in ("closing", "closed")] == ["closing", "closed"]
        assert not [line for line in lines if line["level"] == "error" and line.get("status") is None], lines


@pytest.mark.alone
def test_a_killed_server_comes_back_on_its_port(tmp_path):
    with serving(tmp_path) as (address, process):
        port = int(address.rpartition(":")[2])
        before = reply_of(address)
        with client_of(address) as client:
            stream = client.chat.completions.create(model="default", messages=HELLO, stream=True, n=8)
            next(stream)
            process.kill()
            process.wait()
            with pytest.raises((openai.APIConnectionError, httpx.TransportError)):
                list(stream)
            with pytest.raises(openai.APIConnectionError):
                client.models.list()
    with serving(tmp_path, port=port) as (address, process):
        spent = psutil.Process(process.pid).cpu_times()
        assert spent.user + spent.system <= 15  # ready in ten seconds, where nothing else takes the processor
        assert reply_of(address) == before == Chatbot.from_pretrained().reply(["你好"], seed=1)


def test_a_server_that_cannot_start_says_why_in_one_sentence(tmp_path):
    for code, arguments, words in (
        (1, ["--checkpoint", "default", str(tmp_path / "none")], "none"),
        (2, ["--checkpoint", "default", str(resolve("default"))], "twice"),
        (2, ["--auth", "nobody"], "user:password"),
    ):
        command = [sys.executable, "-m", "ui", "--port", "0", *arguments]
        result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60)
        assert result.returncode == code
        *usage, sentence = result.stderr.splitlines()
        assert words in sentence
        assert sentence.startswith("error: " if code == 1 else "xianliao-serve: error: ")
        assert bool(usage) == (code == 2)


@pytest.fixture(scope="module")
def tiny(checkpoint):
    """A server of the tiny model in this process."""
    listener = listen("127.0.0.1", 0)
    server = Server(create_app(Chatbot.from_pretrained(checkpoint)))
    thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.05)
    yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


def completions_of(address: str):
    schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is not installed")
    return schemathesis.openapi.from_url(f"{address}/openapi.json")["/v1/chat/completions"]["POST"]


def test_a_thousand_malformed_bodies(tiny):
    """Never a failure of the server, never a wait, always an error in OpenAI's form; the others are answered."""
    operation = completions_of(tiny)
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    names = ("status_code_conformance", "content_type_conformance", "response_schema_conformance")
    checks = CHECKS.get_by_names([*names, "not_a_server_error"])
    rejection = CHECKS.get_by_names(["negative_data_rejection"])
    counts: dict[int, int] = {}
    sample = settings(
        max_examples=1000,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )

    @sample
    @given(case=operation.as_strategy(generation_mode=GenerationMode.NEGATIVE))
    def ask(case):
        response = case.call(timeout=10)
        counts[response.status_code] = counts.get(response.status_code, 0) + 1
        too_large = response.status_code == 413  # schemathesis does not count that among the ways of saying no
        case.validate_response(response, checks=checks if too_large else [*checks, *rejection])
        if response.status_code >= 400:
            assert set(response.json()) == {"error"}
            assert set(response.json()["error"]) == {"message", "type", "param", "code"}

    ask()
    print(counts)
    assert sum(counts.values()) >= 1000
    assert counts[400] >= 500
    with openai.OpenAI(base_url=f"{tiny}/v1", api_key="none", max_retries=0) as client:
        assert client.chat.completions.create(model="tiny", messages=HELLO).choices


def test_bodies_of_the_documented_shape_get_documented_answers(tiny):
    operation = completions_of(tiny)
    from hypothesis import HealthCheck, Phase, given, settings
    from schemathesis.checks import CHECKS, load_all_checks

    load_all_checks()
    names = ["not_a_server_error", "status_code_conformance", "content_type_conformance"]
    checks = CHECKS.get_by_names([*names, "response_schema_conformance", "response_headers_conformance"])
    sample = settings(
        max_examples=200,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    answered = []

    @sample
    @given(case=operation.as_strategy())
    def ask(case):
        if len(answered) % 2:  # the schema cannot say that a message of the user must be there: few samples have one
            case.body = {**case.body, "messages": [*case.body["messages"], *HELLO]}
        if len(answered) % 4 == 1:
            case.body = {"messages": HELLO, "model": "another" if len(answered) % 8 == 1 else "tiny"}
        response = case.call(timeout=20)
        case.validate_response(response, checks=checks)
        answered.append(response.status_code)

    ask()
    assert set(answered) == {200, 400, 404}


def test_a_crowd_that_leaves_in_the_middle_frees_every_place(tiny):
    def leave(number: int) -> None:
        body = {"messages": HELLO, "stream": True, "n": 1 + number % 3, "seed": number}
        with httpx.stream("POST", f"{tiny}/v1/chat/completions", json=body, timeout=20) as response:
            for count, _ in enumerate(response.iter_lines()):
                if count == number % 7:
                    break

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(leave, range(200)))
    deadline = time.monotonic() + 10
    while "xianliao_live_replies 0.0" not in httpx.get(f"{tiny}/metrics").text:
        assert time.monotonic() < deadline
        time.sleep(0.05)
