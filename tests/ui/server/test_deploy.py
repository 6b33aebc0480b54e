"""Several replicas: behind nginx as deploy/nginx.conf has it, and as a Ray Serve deployment."""

from __future__ import annotations

import inspect
import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from chatbot.chat.bot import Chatbot
from tests.conftest import ROOT
from tests.ui.serving import HELLO, answers, client_of, endless_checkpoint, free_port, serving

pytestmark = pytest.mark.slow

NGINX = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
AROUND = """
{user} worker_processes 1; daemon off; pid {folder}/pid; error_log {folder}/error.log warn;
events {{ worker_connections 256; }}
http {{
    client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
    uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
    log_format seats escape=json '{{"id":"$http_x_conversation_id","to":"$upstream_addr","status":"$status"}}';
    access_log {folder}/access.log seats;
    include {folder}/xianliao.conf;
}}
"""


@contextmanager
def proxying(folder: Path, ports: list[int]):
    """nginx with the configuration that comes along, other ports in it; yields its address."""
    port = free_port()
    text = (ROOT / "deploy" / "nginx.conf").read_text(encoding="utf-8")
    for old, new in zip((8080, 7861, 7862), (port, *ports), strict=True):
        assert f"127.0.0.1:{old}" in text
        text = text.replace(f"127.0.0.1:{old}", f"127.0.0.1:{new}")
    (folder / "xianliao.conf").write_text(text, encoding="utf-8")
    user = "user root;" if os.geteuid() == 0 else ""
    (folder / "nginx.conf").write_text(AROUND.format(folder=folder, user=user), encoding="utf-8")
    process = subprocess.Popen([NGINX, "-p", str(folder), "-c", str(folder / "nginx.conf")])
    try:
        while not answers(f"http://127.0.0.1:{port}"):
            assert process.poll() is None, (folder / "error.log").read_text()
            time.sleep(0.05)
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait(10)


def went_to(folder: Path, conversation: str) -> list[str]:
    """The replicas that answered requests of a conversation, in order; of retried ones the last."""
    lines = [json.loads(line) for line in (folder / "access.log").read_text(encoding="utf-8").splitlines()]
    return [line["to"].split(", ")[-1] for line in lines if line["id"] == conversation]


def ask(client: openai.OpenAI, conversation: str, messages=HELLO, seed: int = 1) -> str:
    headers = {"X-Conversation-Id": conversation}
    answer = client.chat.completions.create(model="default", messages=messages, seed=seed, extra_headers=headers)
    return answer.choices[0].message.content


def sent_to_the_page(client: httpx.Client, address: str) -> str:
    """The last event of what the page does when something is clicked: two requests that have to meet."""
    config = client.get(f"{address}/config").json()
    number, clicked = next((number, each) for number, each in enumerate(config["dependencies"]) if each["queue"])
    body = {"data": [None] * len(clicked["inputs"]), "fn_index": clicked.get("id", number), "session_hash": "abc"}
    joined = client.post(f"{address}/gradio_api/queue/join", json=body)
    assert joined.status_code == 200, joined.text
    with client.stream("GET", f"{address}/gradio_api/queue/data", params={"session_hash": "abc"}) as events:
        until = time.monotonic() + 20
        for line in events.iter_lines():  # a stream that missed its message only has heartbeats
            if time.monotonic() > until:
                break
            if "process_completed" in line or "unexpected_error" in line:
                return json.loads(line.removeprefix("data: "))["msg"]
    return "nothing"


@pytest.mark.skipif(NGINX is None, reason="nginx is not installed")
def test_two_replicas_behind_nginx(tmp_path):
    bot, endless = Chatbot.from_pretrained(), endless_checkpoint(tmp_path)
    folders = [tmp_path / "one", tmp_path / "two"]
    with ExitStack() as stack:
        start = [(folder.mkdir(), serving(folder, "--checkpoint", "default", str(endless)))[1] for folder in folders]
        with ThreadPoolExecutor(2) as pool:
            replicas = list(pool.map(stack.enter_context, start))
        ports = [int(address.rpartition(":")[2]) for address, _ in replicas]
        address = stack.enter_context(proxying(tmp_path, ports))
        client = stack.enter_context(client_of(address))
        browser = stack.enter_context(httpx.Client(timeout=30))

        seats = check_that_conversations_stay(client, tmp_path)
        check_that_pieces_come_one_by_one(client)
        check_the_page(browser, address)
        for path in ("/metrics", "/metrics/", "/metrics//", "//metrics", "/metrics%2f", "/x/../metrics/"):
            assert httpx.get(f"{address}{path}").status_code == 404
        large = httpx.post(f"{address}/v1/chat/completions", content=b" " * (5 * 2**20))
        assert large.status_code == 413
        assert large.json()["error"]["code"] == "body_too_large"

        dead = 0
        lost = [conversation for conversation, seat in seats.items() if seat.endswith(f":{ports[dead]}")]
        replicas[dead][1].kill()
        replicas[dead][1].wait()
        for conversation in seats:  # the state is made anew from the text: the tokens are the same
            first = bot.reply(["你好"], seed=1)
            messages = [*HELLO, {"role": "assistant", "content": first}, {"role": "user", "content": "今天吃什么"}]
            assert ask(client, conversation, messages, 2) == bot.reply(["你好", first, "今天吃什么"], seed=2)
        assert lost
        assert all(went_to(tmp_path, conversation)[-1].endswith(f":{ports[1]}") for conversation in seats)
        check_the_page(browser, address)

        replicas[1][1].terminate()
        assert replicas[1][1].wait(10) == 0
        with pytest.raises(openai.InternalServerError, match="down"):
            ask(client, "any")


def check_that_conversations_stay(client: openai.OpenAI, folder: Path) -> dict[str, str]:
    names = [f"conversation-{number}" for number in range(12)]
    for _ in range(2):
        for name in names:
            ask(client, name)
    seats = {name: went_to(folder, name) for name in names}
    assert all(len(set(seat)) == 1 for seat in seats.values()), seats
    spread = Counter(seat[0] for seat in seats.values())
    assert len(spread) == 2, spread
    return {name: seat[0] for name, seat in seats.items()}


def check_that_pieces_come_one_by_one(client: openai.OpenAI) -> None:
    """Of a reply without an end nothing would come for long, and then much at once, through a buffer."""
    body = {"model": "endless", "messages": HELLO, "stream": True}
    sizes = []
    with httpx.stream("POST", f"{client.base_url}chat/completions", json=body, timeout=30) as response:
        assert response.headers["content-type"].startswith("text/event-stream")
        for piece in response.iter_raw():
            sizes.append(len(piece))
            if sum(sizes) > 20_000:
                break
    assert len(sizes) >= 20, sizes


def check_the_page(browser: httpx.Client, address: str) -> None:
    page = browser.get(address)
    assert page.status_code == 200
    assert "闲聊" in page.text
    assert page.headers["server"] == "nginx"  # without its version
    assert browser.cookies["xianliao_seat"]
    assert not re.search("xianliao_seat", browser.get(address).headers.get("set-cookie", ""))
    for _ in range(6):  # by chance they might meet once
        assert sent_to_the_page(browser, address) == "process_completed"


def seen_by(module: str) -> dict:
    """What a module has seen that runs Ray in a network of its own."""
    from tests.ui.ray_smoke import namespace

    if namespace() is None:
        pytest.skip("a network of its own needs Linux, unshare, ip, and root or user namespaces")
    command = ["timeout", "580", sys.executable, "-m", module]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr[-3000:]
    print(result.stdout.splitlines()[-1])
    return json.loads(result.stdout.splitlines()[-1])


@pytest.mark.alone
def test_two_replicas_on_ray_serve():
    """The page and API clients go on after the replica that the page was at is killed."""
    pytest.importorskip("ray.serve", reason="ray is not installed")
    from ui.server.ray_app import RaySettings, build

    assert inspect.signature(build).parameters["args"].annotation is RaySettings  # `serve run` goes by it
    seen = seen_by("tests.ui.ray_smoke")
    bot = Chatbot.from_pretrained()
    turns = ["你好", bot.reply(["你好"], seed=1), "今天吃什么"]
    assert seen["first"] == seen["streamed"] == turns[1]
    assert seen["replies_at_a"] == 4  # all of them at one replica
    assert 0 < seen["elsewhere"] < 20
    assert seen["bad_body"]["error"]["type"] == "invalid_request_error"
    assert seen["page_first"] == [turns[1]]
    turns.append(bot.reply(turns, seed=2))
    assert seen["second"] == seen["page_second"] == [turns[3]]
    assert seen["tries"] <= 25  # a few are lost with the replica; the next try goes on
    assert seen["page_tries"] <= 12
    assert seen["replaced"]
    assert seen["page_third"] == [bot.reply([*turns, "你好"], seed=3)]


@pytest.mark.alone
def test_ray_serve_adds_a_replica_under_load_and_removes_it():
    """New conversations are shared with the second replica, old ones keep theirs, and no request is lost."""
    pytest.importorskip("ray.serve", reason="ray is not installed")
    seen = seen_by("tests.ui.ray_scaling")
    bot = Chatbot.from_pretrained()
    turns = ["你好", bot.reply(["你好"], seed=1), "今天吃什么"]
    assert seen["first"] == seen["page_first"] == [turns[1]]
    turns.append(bot.reply(turns, seed=2))
    assert seen["second"] == seen["second_of_new"] == seen["page_second"] == [turns[3]]
    assert 0 < seen["new_at_second"] < seen["new"]
    assert seen["moved_while_two"] == seen["pages_moved_while_two"] == 0
    assert seen["processes_while_draining"] == 2  # the removed replica finishes a reply that it is streaming
    assert seen["last"] == [turns[3]]
    assert seen["page_last"] == [bot.reply([*turns, "你好"], seed=3)]
    assert seen["at_the_end_elsewhere"] == seen["lost"] == 0
    assert seen["load_replies"] > 6
    assert seen["load_texts"] == 1  # both replicas give the same tokens
