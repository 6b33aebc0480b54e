"""Attacks on the page, from other web sites, and without credentials."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import httpx

from tests.attack.target import COMPLETE, DATA, FOREIGN, HOSTS, JOIN, Row, Target
from tests.ui.server.test_files import CLOSED, SECRET, shapes


def files_named(server: Target, row: Row, cookies: httpx.Cookies | None = None) -> None:
    """A file is named in every input of every function; it is neither shown nor removed."""
    canaries = [server.folder / "canary.json", server.folder / "canary.md"]
    for canary in canaries:
        canary.write_text(json.dumps({"messages": [{"role": "user", "text": SECRET}]}))
    client = httpx.Client(base_url=server.address, cookies=cookies, timeout=60)
    for number, function in enumerate(client.get("/config").json()["dependencies"]):
        count = len(function["inputs"])
        for position in range(max(1, count)):
            for shape in shapes(canaries[number % 2]):
                data = [shape if at == position else None for at in range(count)]
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
    for foreign in headers:
        for path in (COMPLETE, JOIN, "/gradio_api/cancel", "/login", "/logout"):
            answer = server.client.post(path, json=hello, headers=foreign)
            holds = answer.status_code == 403 and not [
                name for name in answer.headers if name.startswith("access-control")
            ]
            row.check(holds, (foreign, path, answer.status_code))
    for path in ("/", "/config", COMPLETE, JOIN):
        preflight = {"Origin": FOREIGN[0], "Access-Control-Request-Method": "POST"}
        answer = server.client.options(path, headers=preflight)
        row.check(not [name for name in answer.headers if name.startswith("access-control")], path)
        answer = server.client.get(path)
        holds = (
            answer.headers.get("x-frame-options") == "DENY"
            and answer.headers.get("x-content-type-options") == "nosniff"
        )
        row.check(holds, path)
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
        *(("GET", path) for path in (f"{DATA}?session_hash=s", "/gradio_api/startup-events")),
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
