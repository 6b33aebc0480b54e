"""Attack the project in every way that once worked, and count what fails: python -m tests.attack.figures

Servers are started as a user starts them, on a free port of the loopback address. Each row of the table is one promise with
the number of attempts and of failures, which is 0: attacks on servers, on damaged models and on processes that are killed,
then the tests of each finding (`tests.attack.findings`).
"""

from __future__ import annotations

import bz2
import lzma
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
from tests.attack.kills import PREPARE_KILLS, TIMES, preparing, training
from tests.attack.models import damaged_models
from tests.attack.page_attacks import closed_routes, files_named, foreign_sites, guessing, strangers, unread_results
from tests.attack.studio_attacks import from_elsewhere, hostile_orders, killed
from tests.attack.target import COMPLETE, KEY, USER, Row, Target, target
from tests.conftest import ROOT
from tests.ui.server.test_files import SECRET
from tests.ui.serving import latent_checkpoint


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
            "from data_prep.cli import main; code = main(sys.argv[1:]);"
            # not ru_maxrss of this process: it begins with the memory of the process that started this one
            "status = dict(line.split(':', 1) for line in open('/proc/self/status'));"
            "children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss;"
            "print(max(int(status['VmHWM'].split()[0]), children)); sys.exit(code)"
        )
        command = [sys.executable, "-c", code, "--input", str(bomb), "--output", str(folder / f"set{suffix}")]
        began = time.monotonic()
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)
        row.check("Traceback" not in done.stderr and time.monotonic() - began < 60, done.stderr[-200:])
        peak = int(done.stdout.split()[-1]) / 1000 if done.stdout else float("inf")
        row.check(peak < 2_000, f"{peak:.0f} MB")


def silent_log(server: Target, secret: str, row: Row) -> None:
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


class Table(list[Row]):
    """Rows of attacks that have been made."""

    def run(self, name: str, attack: Callable, *values: object) -> None:
        """Make an attack, whose last argument is its row."""
        self.append(row := Row(name))
        attack(*values, row)


def on_a_server(folder: Path) -> Table:
    table = Table()
    with target(folder, "plain") as server:
        check_slow = slow_loris(server, loris := Row("slow headers: connections are closed after 15 s"))
        table.run("no file that a client names is read or removed", files_named, server)
        table.run("closed routes, uploads", closed_routes, server)
        table.run("foreign hosts, origins, frames, preflights, log-outs", foreign_sites, server)
        table.run("malformed bodies: no 5xx", malformed, server)
        table.run("sizes: refused in words", sizes, server)
        table.run("replies end, impossible settings are refused", settings, server)
        table.run("typed special tokens are text", special_tokens, server)
        table.run("API and Python reply alike", equal_replies, server)
        table.run("people in crisis get a fixed reply", people_in_need, server)
        table.run("clients that vanish leave no reply", vanishing, server)
        table.run("600 conversations: flat memory beside the cache", conversations, server)
        table.run("results that nobody reads: bounded memory", unread_results, server)
        check_slow()
        table.append(loris)
        server.ask("悄悄话-figures")
        table.run("no text of a client in the log", silent_log, server, "悄悄话-figures")
        table.run("SIGTERM with replies in progress", shutdown, server)
    return table


def on_the_training_view(folder: Path) -> Table:
    table = Table()
    with target(folder, "latent", "--checkpoint", str(latent_checkpoint(folder))) as server:
        table.run("no file with the picture of replies", files_named, server)
    with target(folder, "studio", "--studio", str(folder / "studio" / "studio")) as server:
        table.run("no file with the training view", files_named, server)
        table.run("closed routes with the training view", closed_routes, server)
        table.run("training view: other hosts, sites and proxies", from_elsewhere, server)
        table.run("training view: hostile orders", hostile_orders, server)
        table.run("training view: no text of a client in the log", silent_log, server, "touch pwned")
        table.run("training view: killed", killed, server)
    return table


def on_credentials(folder: Path) -> Table:
    table = Table()
    closed = ("--auth", ":".join(USER), "--api-key", KEY["Authorization"].split()[1])
    with target(folder, "closed", *closed) as server:
        table.run("without credentials: 401, before the body", strangers, server)
        client = httpx.Client(base_url=server.address)
        client.post("/login", data={"username": USER[0], "password": USER[1]})
        table.append(row := Row("no file, as a logged-in user"))
        files_named(server, row, client.cookies)
    with target(folder, "limited", *closed, "--rate-limit", "60") as server:
        table.run("guesses at keys and passwords", guessing, server)
    return table


def on_files_and_models(folder: Path) -> Table:
    table = Table()
    table.append(row := Row("packed bombs are prepared in bounded memory"))
    bombs(row, folder)
    table.run("18 damaged models: replies end", damaged_models)
    return table


def by_killing(folder: Path, times: int = TIMES, prepare_kills: int = PREPARE_KILLS) -> Table:
    table = Table()
    table.append(row := Row("killed training: the weights and saves of an uninterrupted run"))
    training(row, folder / "training", times)
    table.append(row := Row("killed prepare: absent or whole, the same bytes"))
    preparing(row, folder / "prepare", prepare_kills)
    return table


def rows(folder: Path) -> list[Row]:
    """Attack and return the table."""
    parts = (on_a_server, on_the_training_view, on_credentials, on_files_and_models, by_killing)
    return [row for part in parts for row in part(folder)]


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
