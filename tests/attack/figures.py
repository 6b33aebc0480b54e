"""Attack the project in every way that once worked, and count what fails: python -m tests.attack.figures

Servers are started as a user starts them, on a free port of the loopback address. Each row of the table is one promise with
the number of attempts and of failures, which is 0: attacks on servers, on damaged models and on processes that are killed,
then the tests of each finding (`tests.attack.findings`).
"""

from __future__ import annotations

import bz2
import lzma
import resource
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import httpx

from tests.attack.api_attacks import equal_replies, malformed, people_in_need, settings, sizes, special_tokens
from tests.attack.findings import BESIDE, FINDINGS, run_tests
from tests.attack.kills import preparing, training
from tests.attack.models import damaged_models
from tests.attack.page_attacks import closed_routes, files_named, foreign_sites, guessing, strangers, unread_results
from tests.attack.studio_attacks import from_elsewhere, hostile_orders, killed
from tests.attack.target import COMPLETE, KEY, USER, Row, Target, target
from tests.conftest import ROOT
from tests.ui.server.test_files import SECRET


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
        run("people in crisis get a fixed reply", people_in_need, server)
        run("clients that vanish leave no reply", vanishing, server)
        run("600 conversations: flat memory beside the cache", conversations, server)
        run("results that nobody reads: bounded memory", unread_results, server)
        check_slow()
        table.append(loris)
        server.ask("悄悄话-figures")
        run("no text of a client in the log", silent_log, server, "悄悄话-figures")
        run("SIGTERM with replies in progress", shutdown, server)
    with target(folder, "studio", "--studio", str(folder / "studio" / "studio")) as server:
        run("no file with the training view", files_named, server)
        run("closed routes with the training view", closed_routes, server)
        run("training view: other hosts, sites and proxies", from_elsewhere, server)
        run("training view: hostile orders", hostile_orders, server)
        run("training view: no text of a client in the log", silent_log, server, "touch pwned")
        run("training view: killed", killed, server)
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
    bombs(row, folder)  # measures children: before the others
    run("18 damaged models: replies end", damaged_models)
    table.append(row := Row("killed training: the weights and saves of an uninterrupted run"))
    training(row, folder / "training")
    table.append(row := Row("killed prepare: absent or whole, the same bytes"))
    preparing(row, folder / "prepare")
    return table


def tested(folder: Path) -> list[Row]:
    """Run the tests of each finding and return a row for each."""
    table = []
    named = {f"{name}: {words}": tests for name, (words, tests) in FINDINGS.items()} | BESIDE
    for name, tests in named.items():
        table.append(row := Row(name))
        run_tests(row, tests, folder)
    return table


def show(table: list[Row]) -> str:
    """Return the table as Markdown, with what failed."""
    lines = ["| promise | attempts | failures |", "|---|---|---|"]
    for row in table:
        lines.append(f"| {row.name} | {row.attempts:,} | {len(row.failures)} |")
    lines += [f"\n{row.name}:\n  " + "\n  ".join(row.failures[:5]) for row in table if row.failures]
    return "\n".join(lines)


if __name__ == "__main__":
    folder = Path(tempfile.mkdtemp())
    result = rows(folder) + tested(folder)
    print(show(result))
    sys.exit(any(row.failures for row in result))
