"""The container image: built, started on loopback, asked, and stopped. Skipped without a usable container runtime."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
import urllib.error
import urllib.request

import pytest

from tests.conftest import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.alone]
BUILD_SECONDS, START_SECONDS = 1800, 120


def usable_runtime() -> str | None:
    """Return docker or podman if its daemon answers (podman has none), else None."""
    for name in ("docker", "podman"):
        if shutil.which(name) is None:
            continue
        try:
            if subprocess.run([name, "info"], capture_output=True, timeout=30).returncode == 0:
                return name
        except subprocess.TimeoutExpired:
            continue
    return None


@pytest.fixture(scope="module")
def address():
    """Address of a container of the image, on loopback."""
    runtime = usable_runtime()
    if runtime is None:
        pytest.skip("needs docker or podman with a running daemon")
    tag = f"xianliao-test-{os.getpid()}"
    build = [runtime, "build", "--file", str(ROOT / "deploy" / "Dockerfile"), "--tag", tag]
    build += ["--build-arg", f"PIP_ARGS={os.environ.get('PIP_ARGS', '')}"]
    subprocess.run([*build, str(ROOT)], check=True, timeout=BUILD_SECONDS)
    container = ""
    try:
        options = ["--detach", "--rm", "--publish", "127.0.0.1::7860", "--cap-drop", "ALL"]
        result = subprocess.run([runtime, "run", *options, tag], check=True, capture_output=True, text=True, timeout=60)
        container = result.stdout.strip()
        ports = subprocess.run([runtime, "port", container, "7860"], check=True, capture_output=True, text=True)
        yield f"http://{ports.stdout.split()[0]}"
    finally:
        if container:
            stopping = subprocess.run([runtime, "stop", "--time", "10", container], capture_output=True, timeout=60)
        subprocess.run([runtime, "rmi", "--force", tag], capture_output=True, timeout=60)
    assert stopping.returncode == 0


def fetch(url: str, body: dict | None = None) -> dict:
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(url, data, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as response:
        return json.load(response)


def test_the_image_starts_answers_and_stops(address):
    deadline = time.monotonic() + START_SECONDS
    while True:
        try:
            health = fetch(f"{address}/healthz")
            break
        except (OSError, urllib.error.URLError):
            assert time.monotonic() < deadline, "the container did not answer"
            time.sleep(1)
    assert health["status"] == "ok"
    body = {"messages": [{"role": "user", "content": "你好"}], "seed": 1}
    (choice,) = fetch(f"{address}/v1/chat/completions", body)["choices"]
    assert choice["message"]["content"]
    assert choice["finish_reason"] in ("stop", "length")
