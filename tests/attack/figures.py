"""Attack a running server in every way that once worked, and count what fails: python -m tests.attack.figures

Servers are started as a user starts them, on a free port of the loopback address. Each row of the table is one promise with
the number of attempts and of failures, which is 0. What needs no server (checkpoints from elsewhere, killed training, the C
code) has tests beside the code.
"""

from __future__ import annotations

import bz2
import json
import lzma
import os
import random
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.attack.hostile import resident_mb
from tests.conftest import ROOT
from tests.ui.server.test_files import CLOSED, SECRET, shapes
from tests.ui.serving import serving

COMPLETE, JOIN, DATA = "/v1/chat/completions", "/gradio_api/queue/join", "/gradio_api/queue/data"
KEY, USER = {"Authorization": "Bearer key-for-figures"}, ("ann", "a-password-for-figures")
FOREIGN = ("http://evil.example", "null", "http://localhost:1", "http://localhost.evil.example", "ftp://localhost")
HOSTS = ("evil.example", "localhost.evil.example", "chat.lan", "a@b", "127.0.0.1.nip.io", "", "localhost, evil.example")
PROBES = ROOT / "chatbot" / "evaluation" / "probes"


@dataclass
class Row:
    """One promise.

    Attributes:
        name: The promise.
        attempts: Number of attempts.
        failures: What failed.
    """

    name: str
    attempts: int = 0
    failures: list[str] = field(default_factory=list)

    def check(self, held: bool, what: object) -> None:
        """Count an attempt, and what it was if the promise did not hold."""
        self.attempts += 1
        if not held:
            self.failures.append(str(what)[:200])


class Target:
    """A server that is attacked.

    Attributes:
        client: Client without credentials.
        functions: Functions of the page.
    """

    def __init__(self, address: str, process: subprocess.Popen, folder: Path):
        self.address, self.process, self.folder = address, process, folder
        self.client = httpx.Client(base_url=address, timeout=60)
        self.functions = []

    def ask(self, text: str, **more: object) -> httpx.Response:
        """Send a message to the API."""
        return self.client.post(COMPLETE, json={"messages": [{"role": "user", "content": text}], **more})

    def resident(self) -> float:
        """Return the server's memory in MB."""
        return resident_mb(self.process.pid)


@contextmanager
def target(folder: Path, name: str, *arguments: str) -> Iterator[Target]:
    """A server with its own folders."""
    place = folder / name
    (place / "tmp").mkdir(parents=True)
    os.environ["TMPDIR"], before = str(place / "tmp"), os.environ.get("TMPDIR")
    try:
        with serving(place, "--data-dir", str(place / "data"), *arguments) as (address, process):
            yield Target(address, process, place)
    finally:
        os.environ.pop("TMPDIR") if before is None else os.environ.update(TMPDIR=before)


# The page.


def files_named(server: Target, row: Row, cookies: httpx.Cookies | None = None) -> None:
    """A file is named in every input of every function; it is neither shown nor removed."""
    canaries = [server.folder / "canary.json", server.folder / "canary.md"]
    for canary in canaries:
        canary.write_text(json.dumps({"messages": [{"role": "user", "text": SECRET}]}))
    client = httpx.Client(base_url=server.address, cookies=cookies, timeout=60)
    for number, function in enumerate(client.get("/config").json()["dependencies"]):
        count = len(function["inputs"])
        for place in range(max(1, count)):
            for shape in shapes(canaries[number % 2]):
                data = [shape if at == place else None for at in range(count)]
                call = {"data": data, "fn_index": function["id"], "session_hash": "s"}
                answer = client.post(JOIN, json=call if count else {**call, "event_data": shape})
                row.check(answer.status_code == 400 and SECRET not in answer.text, (function["id"], shape))
    row.check(all(canary.exists() for canary in canaries), "a file was removed")
    left = [
        path for path in (server.folder / "tmp").rglob("*") if path.is_file() and SECRET in path.read_text("latin-1")
    ]
    row.check(not left, left)


def closed_routes(server: Target, row: Row) -> None:
    """Routes that read or write files are closed, and uploads leave nothing."""
    canary = server.folder / "closed.txt"
    canary.write_text(SECRET)
    for method, path in CLOSED:
        answer = server.client.request(method, path.format(path=canary))
        row.check(answer.status_code in (404, 405) and SECRET not in answer.text, path)
    body = b'--b\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n' + b"x" * 500_000
    for path in ("/gradio_api/upload", JOIN, "/login", COMPLETE):
        for end in (b"\r\n--b--\r\n", b""):
            headers = {"Content-Type": "multipart/form-data; boundary=b"}
            row.check(server.client.post(path, content=body + end, headers=headers).status_code >= 400, path)
    left = [path for path in (server.folder / "tmp").rglob("*") if path.is_file() and path.stat().st_size > 100_000]
    row.check(not left, left)


def unread_results(server: Target, row: Row) -> None:
    """Calls of 1.5 MB whose results nobody reads leave the memory bounded."""
    chat = {"id": "", "title": "", "persona": [], "messages": [{"role": "user", "text": "长" * 490_000}]}
    function = next(part for part in server.client.get("/config").json()["dependencies"] if part["api_name"] == "begin")
    before = server.resident()
    for number in range(210):
        call = {"data": [chat], "fn_index": function["id"], "session_hash": f"u{number % 70}"}
        row.check(server.client.post(JOIN, json=call).status_code in (200, 503), "status")
    row.check(server.resident() - before < 300, f"{server.resident() - before:.0f} MB more")
    row.check(server.client.get(DATA, params={"session_hash": "nobody"}).status_code == 404, "unknown session")


# Other web sites.


def foreign_sites(server: Target, row: Row) -> None:
    """Foreign hosts and origins get nothing, and no answer has CORS headers."""
    hello = {"messages": [{"role": "user", "content": "你好"}]}
    for host in HOSTS:
        for method, path in (("GET", "/"), ("GET", "/config"), ("POST", COMPLETE), ("POST", JOIN), ("GET", "/healthz")):
            answer = server.client.request(method, path, headers={"Host": host})
            row.check(answer.status_code in (400, 421), (host, path, answer.status_code))
    headers = [{"Origin": origin} for origin in FOREIGN] + [
        {"Sec-Fetch-Site": site} for site in ("cross-site", "same-site")
    ]
    for given in headers:
        for path in (COMPLETE, JOIN, "/gradio_api/cancel", "/login", "/logout"):
            answer = server.client.post(path, json=hello, headers=given)
            held = answer.status_code == 403 and not [
                name for name in answer.headers if name.startswith("access-control")
            ]
            row.check(held, (given, path, answer.status_code))
    for path in ("/", "/config", COMPLETE, JOIN):
        preflight = {"Origin": FOREIGN[0], "Access-Control-Request-Method": "POST"}
        answer = server.client.options(path, headers=preflight)
        row.check(not [name for name in answer.headers if name.startswith("access-control")], path)
        answer = server.client.get(path)
        held = (
            answer.headers.get("x-frame-options") == "DENY"
            and answer.headers.get("x-content-type-options") == "nosniff"
        )
        row.check(held, path)
    row.check(server.client.get("/logout").status_code in (404, 405), "a link logs people out")


# Credentials.


def strangers(server: Target, row: Row) -> None:
    """Without credentials every route answers 401 before the body is read."""
    for method, path in (
        *(("POST", path) for path in (COMPLETE, JOIN, "/gradio_api/cancel", "/gradio_api/reset", "/v1/embeddings")),
        *(
            ("GET", path)
            for path in ("/config", "/v1/models", "/metrics", "/metrics/", "/openapi.json", "/gradio_api/info")
        ),
        *(
            ("GET", path)
            for path in (f"{DATA}?session_hash=s", "/gradio_api/heartbeat/x", "/gradio_api/startup-events")
        ),
    ):
        for headers in (
            {},
            {"Authorization": "Bearer no"},
            {"Authorization": "Basic YTpi"},
            {"Cookie": "access-token-x=1"},
        ):
            row.check(server.client.request(method, path, headers=headers).status_code == 401, (method, path, headers))
    for size in (4_000_000, 3_000_000_000):
        with socket.create_connection(
            (urlsplit(server.address).hostname, urlsplit(server.address).port), 5
        ) as connection:
            head = f"POST {COMPLETE} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
            connection.sendall(head.encode())
            row.check(b" 401 " in connection.recv(100), size)


def guessing(server: Target, row: Row) -> None:
    """Guesses at keys and passwords are slowed down to the rate limit."""
    statuses = [
        server.client.get("/v1/models", headers={"Authorization": f"Bearer {number}"}).status_code
        for number in range(200)
    ]
    statuses += [
        server.client.post("/login", data={"username": "ann", "password": str(number)}).status_code
        for number in range(50)
    ]
    row.attempts = len(statuses)
    if 200 in statuses or statuses.count(429) < 100:
        row.failures.append(f"{statuses.count(429)} of {len(statuses)} refused")


# The API.


def malformed(server: Target, row: Row) -> None:
    """No body brings an answer of 5xx."""
    chance = random.Random(1)
    good = {"messages": [{"role": "user", "content": "你好"}], "max_tokens": 1}
    values = [None, 1, -1, 1e308, "", "x", [], {}, [[]], {"a": 1}, True, [None] * 9, "\ud800", "长" * 3_000]
    for number in range(900):
        body = json.loads(json.dumps(good))
        part = chance.choice([body, body["messages"][0]])
        keys = (*part, "n", "stop", "seed", "temperature", "top_p", "model", "stream_options", "max_completion_tokens")
        part[chance.choice(keys)] = chance.choice(values)
        text = json.dumps(body).encode()
        if number % 3 == 0:
            at = chance.randrange(len(text))
            text = text[:at] + bytes([chance.randrange(256)]) + text[at + chance.randrange(3) :]
        answer = server.client.post(COMPLETE, content=text, headers={"Content-Type": "application/json"})
        row.check(answer.status_code < 500, (answer.status_code, text))


def sizes(server: Target, row: Row) -> None:
    """Large requests are refused in words, quickly, and the next one is answered."""
    for shape, expected in (
        ({"messages": [{"role": "user", "content": "长" * 990_000}]}, 400),
        ({"messages": [{"role": "user", "content": [{}] * 60}] * 12_000}, 400),
        ({"messages": [{"role": "user", "content": "a"}] * 513}, 400),
        ({"messages": [{"role": "user", "content": "长" * 1_300_000}]}, 413),
        ({"messages": [{"role": "user", "content": "你好"}], "metadata": [[]] * 150_000}, 400),
    ):
        body = json.dumps(shape, ensure_ascii=False, separators=(",", ":")).encode()
        began = time.monotonic()
        answer = server.client.post(COMPLETE, content=body, headers={"Content-Type": "application/json"})
        held = answer.status_code == expected and answer.json()["error"]["message"]
        row.check(bool(held) and time.monotonic() - began < 20, (len(body), answer.status_code))
    row.check(server.ask("你好").status_code == 200, "the next request")


def settings(server: Target, row: Row) -> None:
    """Replies end within their bound at every setting, and impossible settings are refused."""
    for number in range(60):
        answer = server.ask(
            "讲个很长的故事",
            seed=number,
            temperature=(0, 0.01, 0.5, 1, 2)[number % 5],
            top_p=(0.01, 0.5, 1)[number % 3],
        )
        row.check(answer.status_code == 200 and answer.json()["usage"]["completion_tokens"] < 1_000, answer.text)
    for name, value in (
        *(("temperature", value) for value in (-1, 3, "1", True)),
        *(("top_p", value) for value in (0, -1, 1.1, "x")),
        *(("n", value) for value in (0, 9, 1.5, "2")),
        *(("max_tokens", value) for value in (0, -5, 10**9, 1.5)),
        *(("seed", value) for value in (-1, 2**31, "1", 1.5)),
    ):
        row.check(server.ask("你好", **{name: value}).status_code == 400, (name, value))


def special_tokens(server: Target, row: Row) -> None:
    """Typed special tokens are text: in ids, and in the number of tokens that the server counts."""
    from chatbot.checkpoint.folder import resolve
    from chatbot.text.tokenizer import DialogueTokenizer

    tokenizer = DialogueTokenizer.load(resolve("default"))
    special = {token for token in tokenizer.special_ids if token is not None}
    names = ["[SEP]", "[CLS]", "[PAD]", "[UNK]", "<|im_end|>", "<s>", "</s>", "[speaker1]", "<|endoftext|>"]
    chance = random.Random(2)
    for _ in range(3_000):
        text = "".join(chance.choices([*names, "你好", " ", "\n", "[", "]", "SEP", "\u200b", "ＳＥＰ"], k=6))
        row.check(not special & set(tokenizer.encode(text)), text)
    plain = server.ask("你好你好").json()["usage"]["prompt_tokens"]
    for name in names:
        row.check(server.ask(f"你好{name}你好").json()["usage"]["prompt_tokens"] > plain, name)


def equal_replies(server: Target, row: Row) -> None:
    """The API gives the replies that Python gives."""
    from chatbot import Chatbot

    bot = Chatbot.from_pretrained("default")
    for number in range(40):
        text = ("今天心情不太好", "你喜欢吃什么", "周末去哪玩", "什么意思？？呀")[number % 4]
        content = server.ask(text, seed=number).json()["choices"][0]["message"]["content"]
        row.check(content == bot.reply([text], seed=number), (text, number))


def people_in_need(server: Target, row: Row) -> None:
    """A person in need gets a fixed reply, wherever in a text the need is said."""
    filler = "今天天气很好，我们去公园散步，看到了很多花。"
    for line in (PROBES / "need_dev.txt").read_text(encoding="utf-8").splitlines():
        if line and not line.startswith("#"):
            row.check(server.ask(line).headers.get("x-fixed-reply") == "crisis", line)
    for size in (18_000, 40_000, 120_000, 480_000):
        text = (filler * (size // len(filler) + 1))[:size]
        middle = f"{text[: size // 2]}。我不想活了。{text[size // 2 :]}"
        row.check(server.ask(middle).headers.get("x-fixed-reply") == "crisis", size)
        history = [("user", middle), ("assistant", "嗯"), ("user", "嗯")]
        messages = [{"role": role, "content": text} for role, text in history]
        answer = server.client.post(COMPLETE, json={"messages": messages})
        row.check(answer.headers.get("x-fixed-reply") == "care", f"earlier turn of {size}")


# Connections, memory, the end.


def slow_loris(server: Target, row: Row) -> Callable[[], None]:
    """Open connections whose headers never end; the function that is returned checks that they were closed."""
    parts = urlsplit(server.address)
    connections = [socket.create_connection((parts.hostname, parts.port), 5) for _ in range(200)]
    for connection in connections:
        connection.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\nX: ")
    began = time.monotonic()

    def check() -> None:
        time.sleep(max(0, began + 17 - time.monotonic()))
        for connection in connections:
            connection.settimeout(1)
            try:
                row.check(connection.recv(1) == b"", "still open")
            except ConnectionError:
                row.check(True, "")
            except TimeoutError:
                row.check(False, "still open")
            connection.close()

    return check


def vanishing(server: Target, row: Row) -> None:
    """Clients leave in the middle of a stream, and nothing of their replies is left."""
    for number in range(60):
        request = {"messages": [{"role": "user", "content": "讲个故事"}], "stream": True, "n": 8, "seed": number}
        with server.client.stream("POST", COMPLETE, json=request) as answer:
            row.check(answer.status_code == 200, answer.status_code)
            next(answer.iter_lines())
    for _ in range(100):
        lines = server.client.get("/metrics").text.splitlines()
        live = [float(line.split()[1]) for line in lines if line.startswith(("xianliao_live", "xianliao_waiting"))]
        if live == [0, 0]:
            break
        time.sleep(0.1)
    row.check(live == [0, 0], live)


def conversations(server: Target, row: Row) -> None:
    """Many clients with ids of their own leave the memory as it is."""
    for number in range(600):
        if number == 300:
            before = server.resident() - remembered(server)
        answer = server.client.post(
            COMPLETE,
            json={"messages": [{"role": "user", "content": f"你好{number}"}], "max_tokens": 2},
            headers={"X-Conversation-Id": f"c{number}"},
        )
        row.check(answer.status_code == 200, answer.status_code)
    growth = server.resident() - remembered(server) - before
    row.check(growth < 60, f"{growth:.0f} MB more")


def remembered(server: Target) -> float:
    """Return the size of the cached states of conversations in MB, which has a bound of its own."""
    lines = server.client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("xianliao_remembered_bytes")) / 1e6


def bombs(row: Row, folder: Path) -> None:
    """A small packed file that unpacks to a large line is prepared in bounded memory, or refused in a sentence."""
    text = b"a" * 400_000_000
    for suffix, pack in ((".bz2", bz2.compress), (".xz", lambda data: lzma.compress(data, preset=0))):
        bomb = folder / f"bomb.txt{suffix}"
        bomb.write_bytes(pack(text))
        code = (
            "import resource, sys; resource.setrlimit(resource.RLIMIT_AS, (6 << 30, 6 << 30));"
            "from data_prep.cli import main; sys.exit(main(sys.argv[1:]))"
        )
        command = [sys.executable, "-c", code, "--input", str(bomb), "--output", str(folder / f"set{suffix}")]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        row.check("Traceback" not in done.stderr and time.monotonic() - began < 60, done.stderr[-200:])
    peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1000
    row.check(peak < 2_000, f"{peak:.0f} MB")  # all children so far, servers among them


def silent_log(server: Target, row: Row, secret: str) -> None:
    """The log has no text of a client and no traceback."""
    time.sleep(0.5)
    log = (server.folder / "stderr").read_text() + (server.folder / "stdout").read_text()
    for needle in (secret, "Traceback", SECRET, "不想活"):
        row.check(needle not in log, f"{needle} is in the log")


def shutdown(server: Target, row: Row) -> None:
    """With replies and an open stream, the server ends within seconds of SIGTERM, with exit code 0."""
    threads = [threading.Thread(target=_ignore_errors, args=(server,), daemon=True) for _ in range(20)]
    for thread in threads:
        thread.start()
    time.sleep(0.5)
    server.process.terminate()
    began = time.monotonic()
    row.check(server.process.wait(20) == 0, "exit code")
    row.check(time.monotonic() - began < 8, f"{time.monotonic() - began:.1f} s")


def _ignore_errors(server: Target) -> None:
    try:
        with httpx.Client(base_url=server.address, timeout=20) as client:
            client.post(COMPLETE, json={"messages": [{"role": "user", "content": "讲个故事"}], "n": 4})
    except httpx.HTTPError:
        pass


def rows(folder: Path) -> list[Row]:
    """Attack and return the table."""
    table: list[Row] = []

    def run(name: str, attack: Callable, *values: object) -> object:
        row = Row(name)
        table.append(row)
        return attack(*values, row) if attack is not silent_log else attack(*values[:1], row, *values[1:])

    with target(folder, "plain") as server:
        check_slow = slow_loris(server, loris := Row("slow headers: connections are closed after 15 s"))
        run("no file that a client names is read or removed", files_named, server)
        run("closed routes, uploads", closed_routes, server)
        run("foreign hosts, origins, frames, preflights, log-outs", foreign_sites, server)
        run("malformed bodies: no 5xx", malformed, server)
        run("sizes: refused in words", sizes, server)
        run("replies end, impossible settings are refused", settings, server)
        run("typed special tokens are text", special_tokens, server)
        run("API and Python reply alike", equal_replies, server)
        run("people in need get a fixed reply", people_in_need, server)
        run("clients that vanish leave no reply", vanishing, server)
        run("600 conversations: flat memory beside the cache", conversations, server)
        run("results that nobody reads: bounded memory", unread_results, server)
        check_slow()
        table.append(loris)
        server.ask("悄悄话-figures")
        run("no text of a client in the log", silent_log, server, "悄悄话-figures")
        run("SIGTERM with replies in progress", shutdown, server)
    closed = ("--auth", ":".join(USER), "--api-key", KEY["Authorization"].split()[1])
    with target(folder, "closed", *closed) as server:
        run("without credentials: 401, before the body", strangers, server)
        client = httpx.Client(base_url=server.address)
        client.post("/login", data={"username": USER[0], "password": USER[1]})
        row = Row("no file, as a logged-in user")
        table.append(row)
        files_named(server, row, client.cookies)
    with target(folder, "limited", *closed, "--rate-limit", "60") as server:
        run("guesses at keys and passwords", guessing, server)
    table.append(row := Row("packed bombs are prepared in bounded memory"))
    bombs(row, folder)
    return table


def show(table: list[Row]) -> str:
    """Return the table as Markdown, with what failed."""
    lines = ["| promise | attempts | failures |", "|---|---|---|"]
    for row in table:
        lines.append(f"| {row.name} | {row.attempts:,} | {len(row.failures)} |")
    lines += [f"\n{row.name}:\n  " + "\n  ".join(row.failures[:5]) for row in table if row.failures]
    return "\n".join(lines)


if __name__ == "__main__":
    result = rows(Path(tempfile.mkdtemp()))
    print(show(result))
    sys.exit(any(row.failures for row in result))
