"""A small server that speaks the API of the Hugging Face hub, for models in folders of this machine."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit


class Hub:
    """Models of the server.

    Attributes:
        models: Folder of each commit, by the name of the model.
        branches: Commit of each branch and tag, by the name of the model.
        gated: Names of models whose files need permission.
        sizes: Sizes that the server claims for files, instead of the true ones.
        headers: Headers of the answers with files, instead of the usual ones.
        downloads: Path of each file that was downloaded, in order.
        url: Address of the server.
    """

    def __init__(self) -> None:
        self.models: dict[str, dict[str, Path]] = {}
        self.branches: dict[str, dict[str, str]] = {}
        self.gated: set[str] = set()
        self.sizes: dict[str, int] = {}
        self.headers: dict[str, str] = {}
        self.downloads: list[str] = []
        self.url = ""

    def push(self, name: str, folder: Path, branch: str = "main") -> str:
        """Make a folder the newest commit of a branch and return the commit."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        commit = hashlib.sha1(b"".join(path.read_bytes() for path in files)).hexdigest()
        self.models.setdefault(name, {})[commit] = folder
        self.branches.setdefault(name, {})[branch] = commit
        return commit

    def answer(self, target: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for the target of a request."""
        parts = unquote(urlsplit(target).path).strip("/").split("/")
        kind = "file"
        if parts[:2] == ["api", "models"]:
            parts, kind = parts[2:], "info"
        name, rest = "/".join(parts[:2]), parts[2:]
        if name not in self.models:
            return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"
        if name in self.gated and kind == "file":
            return 403, {"X-Error-Code": "GatedRepo"}, b"{}"
        revision = rest[1] if len(rest) > 1 else "main"
        commit = self.branches[name].get(revision, revision)
        if commit not in self.models[name]:
            return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
        folder = self.models[name][commit]
        if kind == "info" and rest[:1] == ["tree"]:
            files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            entries = [
                {"type": "file", "path": file, "size": self._size(folder, file), "oid": "0" * 40} for file in files
            ]
            return 200, {"Content-Type": "application/json"}, json.dumps(entries).encode()
        if kind == "info":
            files = (path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
            siblings = [{"rfilename": file, "size": self._size(folder, file)} for file in files]
            content = {"id": name, "sha": commit, "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(content).encode()
        path = folder.joinpath(*rest[2:])
        if not path.is_file():
            return 404, {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": commit}, b""
        content = path.read_bytes()
        headers = {"X-Repo-Commit": commit, "ETag": f'"{hashlib.sha1(content).hexdigest()}"'}
        return 200, headers | self.headers, content

    def _size(self, folder: Path, file: str) -> int:
        return self.sizes.get(file, (folder / file).stat().st_size)


@contextmanager
def serving() -> Iterator[Hub]:
    """Serve a hub without models on a free port of this machine."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def reply(self, with_body: bool) -> None:
            status, headers, body = hub.answer(self.path)
            if with_body and "/resolve/" in self.path and status == 200:
                hub.downloads.append(self.path.partition("/resolve/")[2].partition("/")[2])
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if with_body:
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.reply(False)

        def do_GET(self) -> None:
            self.reply(True)

        def log_message(self, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
