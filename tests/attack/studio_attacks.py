"""Attacks on a server with the training view: from elsewhere, with hostile orders, and by killing it."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path

from tests.attack.target import DATA, FOREIGN, HOSTS, JOIN, Row, Target
from tests.ui.server.test_files import SECRET

WORDS = (
    "$(touch pwned)",
    "`touch pwned`",
    "--output=pwned",
    "../../pwned.txt",
    "; touch pwned",
    "pwned\0.txt",
    "-h",
    "名" * 200,
)
DEEP = "[" * 5_000 + "]" * 5_000


def function(server: Target, name: str) -> int:
    """Return the number of a function of the page."""
    config = server.client.get("/config").json()
    return next(part["id"] for part in config["dependencies"] if part["api_name"] == name)


def called(server: Target, number: int, data: list[object], **headers: str) -> tuple[int, str]:
    """Call a function of the page; return the status of the call and what its result says."""
    session = f"s{time.monotonic_ns()}"
    call = {"data": data, "fn_index": number, "session_hash": session}
    answer = server.client.post(JOIN, json=call, headers=headers)
    if answer.status_code != 200:
        return answer.status_code, answer.text
    text = ""
    with server.client.stream("GET", DATA, params={"session_hash": session}) as stream:
        for line in stream.iter_lines():
            text += line
            if "process_completed" in line or "close_stream" in line:
                break
    return 200, text


def from_elsewhere(server: Target, row: Row) -> None:
    """No function of the view is reached under another host, from another site, or through a proxy."""
    numbers = [function(server, name) for name in ("order", "open_result")]
    foreign_headers = [{"Host": host} for host in HOSTS if host] + [{"Origin": origin} for origin in FOREIGN]
    foreign_headers += [
        {name: "127.0.0.1"} for name in ("Forwarded", "Via", "X-Forwarded-For", "X-Forwarded-Host", "X-Real-IP")
    ]
    for headers in foreign_headers:
        for number in numbers:
            status, text = called(server, number, [{"do": "prepare", "texts": [{"text": "你好"}]}], **headers)
            row.check(status in (400, 403, 421), (headers, status, text))


def hostile_orders(server: Target, row: Row) -> None:
    """Orders with names, options, commands and floods end in words; no file appears outside the view's folder."""
    order, outside = function(server, "order"), server.folder / "canary.txt"
    outside.write_text(SECRET)
    work = server.folder / "studio"
    names = (str(outside), "../canary.txt", "/etc/passwd", "work/project.json", *WORDS)
    orders: list[object] = [None, 1, [], "prepare", {"do": 1}, {"do": "close"}, {"do": ["prepare"]}, {"do": "order"}]
    orders += [{"do": "prepare", "chosen": [name]} for name in names]
    orders += [{"do": action, "preset": name} for name in names for action in ("train", "estimate")]
    orders += [{"do": "prepare", "texts": texts} for texts in (1, [1], [{}], [{"text": 1}], [{"text": "长"}] * 60)]
    orders += [{"do": "prepare", "texts": [{"name": "a", "text": "长" * 900_000}, {"text": "a" * 1_700_000}]}]
    orders += [{"do": "prepare", "person": word, "texts": [{"name": word, "text": "你好\n在吗\n"}]} for word in WORDS]
    orders += [{"do": "resume"}, {"do": "stop"}, {"do": "again"}, {"do": "prepare", "texts": [{"text": DEEP}]}]
    for value in orders:
        status, text = called(server, order, [value])
        holds = (
            status in (200, 400, 413, 503) and SECRET not in text and "root:x:" not in text and "Traceback" not in text
        )
        row.check(holds, (str(value)[:80], status, text[-100:]))
    body = json.dumps({"data": [{"do": "prepare", "texts": [{"text": "长" * (4 << 20)}]}], "fn_index": order})
    row.check(server.client.post(JOIN, content=body).status_code in (400, 413), "a body over 4 MiB")
    row.check(server.client.get("/healthz").status_code == 200, "the server answers")
    row.check(not list(server.folder.rglob("pwned*")), "a file appeared")
    entries = [path.name for path in (work / "work").iterdir()]
    row.check(all(re.fullmatch(r"(data|set|bot)-\d+(-\w+)?|project\.json|\..*", name) for name in entries), entries)


def killed(server: Target, row: Row) -> None:
    """The command of a server that is killed ends with its next line, and its record is whole."""
    called(server, function(server, "order"), [{"do": "again"}])
    called(server, function(server, "order"), [{"do": "prepare", "texts": [{"text": "你好\n在吗\n" * 100_000}]}])
    server.process.kill()
    server.process.wait()
    deadline = time.monotonic() + 120
    while running_in(server.folder) and time.monotonic() < deadline:
        time.sleep(0.2)
    row.check(not running_in(server.folder), running_in(server.folder))
    record = json.loads((server.folder / "studio" / "work" / "project.json").read_text())
    row.check(isinstance(record, dict), record)


def running_in(folder: Path) -> list[str]:
    """Return the command lines of processes that name a folder."""
    commands = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
        except OSError:
            continue
        if str(folder) in line and ("data_prep" in line or "training" in line):
            commands.append(line)
    return commands
