"""Two local replicas on Ray Serve, one of them killed; prints what was seen as JSON. Run by test_deploy.py."""

from __future__ import annotations

import json
import logging
import os
import re
import time

import httpx
import psutil

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_SESSION_ID_HEADER_KEY"] = "x-conversation-id"

import ray
from ray import serve

from ui.server.ray_app import RaySettings, build

PORT = 7870
ADDRESS = f"http://127.0.0.1:{PORT}"


def ask(conversation: str, turns: list[str], seed: int = 1) -> str | None:
    """The reply, or None where there is none."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
    headers = {"X-Conversation-Id": conversation}
    body = {"messages": messages, "seed": seed}
    try:
        answer = httpx.post(f"{ADDRESS}/v1/chat/completions", json=body, headers=headers, timeout=20)
    except httpx.TransportError:
        return None
    return answer.json()["choices"][0]["message"]["content"] if answer.status_code == 200 else None


def replies_at_replica_of(conversation: str) -> int:
    shown = httpx.get(f"{ADDRESS}/metrics", headers={"X-Conversation-Id": conversation}, timeout=20).text
    return sum(int(float(count)) for count in re.findall(r"^xianliao_replies_total{.*} (\S+)$", shown, re.MULTILINE))


def replicas() -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if process.name().startswith("ray::ServeRepli")]


def running() -> int:
    deployment = serve.status().applications["xianliao"].deployments["xianliao"]
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")


def main() -> None:
    ray.init(
        num_cpus=2,
        include_dashboard=False,
        logging_level=logging.ERROR,
        log_to_driver=False,
        object_store_memory=100 * 2**20,
        _node_ip_address="127.0.0.1",
    )
    seen: dict = {}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(build(RaySettings(cpus=0.5)), name="xianliao")
        seen["first"] = {ask("a", ["你好"]) for _ in range(4)}.pop()
        seen["replies_at_a"] = replies_at_replica_of("a")
        names = [f"conversation-{number}" for number in range(20)]
        seen["elsewhere"] = sum(replies_at_replica_of(name) == 0 for name in names)
        body = {"messages": [{"role": "user", "content": "你好"}], "stream": True, "seed": 1}
        with httpx.stream("POST", f"{ADDRESS}/v1/chat/completions", json=body, timeout=20) as stream:
            events = [line for line in stream.iter_lines() if line.startswith("data: {")]
        deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events]
        seen["streamed"] = "".join(delta.get("content", "") for delta in deltas)
        seen["bad_body"] = httpx.post(f"{ADDRESS}/v1/chat/completions", content=b"{").json()
        seen["page"] = httpx.get(ADDRESS).status_code
        replicas()[0].kill()
        killed = time.monotonic()
        second = ["你好", seen["first"], "今天吃什么"]
        said = {name: [] for name in names}
        for name, found in said.items():
            while not found or (found[-1] is None and time.monotonic() < killed + 60):
                found.append(ask(name, second, 2))
        seen["second"] = sorted({found[-1] or "" for found in said.values()})
        seen["tries"] = sum(map(len, said.values()))
        while running() < 2 and time.monotonic() < killed + 120:
            time.sleep(0.5)
        seen["running_again"] = running()
    finally:
        serve.shutdown()
        ray.shutdown()
    print(json.dumps(seen, ensure_ascii=False))


if __name__ == "__main__":
    main()
