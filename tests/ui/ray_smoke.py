"""Two replicas on Ray Serve, one of them killed while a page and API clients talk; prints what was seen as JSON.

    python -m tests.ui.ray_smoke               # about two minutes; test_deploy.py checks the result
    python -m tests.ui.ray_smoke --alone       # latency and memory of one xianliao-serve, to compare

Ray's processes listen on all interfaces, so this runs in a network of its own: as root, or with user namespaces.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import httpx
import psutil

from tests.conftest import ROOT
from tests.ui.serving import serving

os.environ["RAY_USAGE_STATS_ENABLED"] = "0"
os.environ["RAY_SERVE_SESSION_ID_HEADER_KEY"] = "x-conversation-id"
os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] = "ui.server.ray_seats:middlewares"
os.environ["RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S"] = (
    "60"  # on a busy machine the proxy starts more slowly than Ray allows
)

PORT = 7870
ADDRESS = f"http://127.0.0.1:{PORT}"
INSIDE = "XIANLIAO_RAY_SMOKE"
REQUESTS = 40
QUESTIONS = ("你好", "今天吃什么")


def namespace() -> list[str] | None:
    """The beginning of a command that runs in a network with a loopback interface alone; None if there is none."""
    for unshare in (["unshare", "--net"], ["unshare", "--map-root-user", "--net"]):
        begin = [*unshare, "sh", "-c", 'ip link set lo up && exec "$@"', "sh"]
        try:
            if subprocess.run([*begin, "true"], capture_output=True).returncode == 0:
                return begin
        except OSError:
            continue
    return None


class Page:
    """A browser with the page open: what its script sends when a person writes a message."""

    def __init__(self, address: str):
        self.client = httpx.Client(base_url=address, timeout=30)
        assert self.client.get("/").status_code == 200
        config = self.client.get("/config").json()
        self.functions = {part["api_name"]: part["id"] for part in config["dependencies"]}
        values = {part["id"]: part["props"].get("value") for part in config["components"]}
        inputs = next(part["inputs"] for part in config["dependencies"] if part["api_name"] == "answer")
        self.chat, self.model, _, self.temperature, self.top_p = (values[number] for number in inputs)

    def say(self, text: str, seed: int) -> str | None:
        """The reply to a message. The chat has both afterwards; without a reply it is as before."""
        try:
            (chat, *_) = self._call("say", [self.chat, text, self.model])
            (chat, *_) = self._call("answer", [chat, self.model, str(seed), self.temperature, self.top_p])
        except (httpx.HTTPError, LookupError, TimeoutError):
            return None
        self.chat = chat
        return chat["messages"][-1]["text"]

    def _call(self, name: str, data: list) -> list:
        body = {"data": data, "fn_index": self.functions[name], "session_hash": "smoke"}
        self.client.post("/gradio_api/queue/join", json=body).raise_for_status()
        until = time.monotonic() + 20
        with self.client.stream("GET", "/gradio_api/queue/data", params={"session_hash": "smoke"}) as events:
            for line in events.iter_lines():  # a stream that missed its message only has heartbeats
                event = json.loads(line.removeprefix("data:")) if line.startswith("data:") else {}
                if event.get("msg") == "process_completed":
                    return event["output"]["data"]
                if time.monotonic() > until:
                    break
        raise TimeoutError(name)


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
    return [process for process in psutil.Process().children(True) if process.name().startswith("ray::ServeRepli")]


def replicas_but(dead: psutil.Process) -> list[psutil.Process]:
    """The replicas without the killed one: Ray's status counts it until the next health check."""
    return [process for process in replicas() if process != dead]


def busiest(processes: list[psutil.Process], work: Callable[[], object]) -> psutil.Process:
    """The process that used most of the processor while the work was done."""
    before = {process: sum(process.cpu_times()[:2]) for process in processes}
    work()
    return max(processes, key=lambda process: sum(process.cpu_times()[:2]) - before[process])


def running() -> int:
    from ray import serve

    deployment = serve.status().applications["xianliao"].deployments["xianliao"]
    return sum(count for state, count in deployment.replica_states.items() if state == "RUNNING")


def milliseconds(call: Callable[[int], object], times: int) -> dict[str, int]:
    """The median and the 95th percentile of the time that a call takes; the first calls of a client are not counted."""
    taken = []
    for number in range(-4, times):
        started = time.perf_counter()
        assert call(number % 20) is not None
        if number >= 0:
            taken.append((time.perf_counter() - started) * 1e3)
    return {"median": round(statistics.median(taken)), "p95": round(statistics.quantiles(taken, n=20)[-1])}


def latencies() -> dict[str, dict[str, int]]:
    """Milliseconds of whole replies one after the other, with the same seeds every time."""
    page = Page(ADDRESS)
    return {
        "api": milliseconds(lambda number: ask(f"timed-{number}", [QUESTIONS[0]], number), REQUESTS),
        "page": milliseconds(lambda number: page.say(QUESTIONS[1], number), REQUESTS // 2),
    }


def mebibytes(processes: list[psutil.Process]) -> list[int]:
    """Proportional set sizes: memory that several processes share is divided among them."""
    return [round(process.memory_full_info().pss / 2**20) for process in processes]


def memory() -> dict[str, object]:
    ours = replicas()
    others = [process for process in psutil.Process().children(True) if process not in ours]
    proxy = [process for process in others if "Proxy" in process.name()]
    return {"replicas": mebibytes(ours), "proxy": sum(mebibytes(proxy)), "all_of_ray": sum(mebibytes(others))}


def talk(seen: dict) -> None:
    """Talk to both replicas, kill the one that the page is at, and go on."""
    seen["first"] = {ask("a", [QUESTIONS[0]]) for _ in range(4)}.pop()
    seen["replies_at_a"] = replies_at_replica_of("a")
    names = [f"conversation-{number}" for number in range(20)]
    seen["elsewhere"] = sum(replies_at_replica_of(name) == 0 for name in names)
    body = {"messages": [{"role": "user", "content": QUESTIONS[0]}], "stream": True, "seed": 1}
    with httpx.stream("POST", f"{ADDRESS}/v1/chat/completions", json=body, timeout=20) as stream:
        events = [line for line in stream.iter_lines() if line.startswith("data: {")]
    deltas = [json.loads(event[6:])["choices"][0]["delta"] for event in events]
    seen["streamed"] = "".join(delta.get("content", "") for delta in deltas)
    seen["bad_body"] = httpx.post(f"{ADDRESS}/v1/chat/completions", content=b"{").json()
    pages = [Page(ADDRESS) for _ in range(6)]
    seen["page_first"] = sorted({page.say(QUESTIONS[0], 1) or "" for page in pages})
    homes = [busiest(replicas(), lambda page=page: [Page.say(page, "在吗", 3) for _ in range(3)]).pid for page in pages]
    seen["page_replicas"] = len(set(homes))
    for page in pages:
        page.chat = {**page.chat, "messages": page.chat["messages"][:2]}
    seen["before"] = latencies() | {"mebibytes": memory()}

    dead = next(process for process in replicas() if process.pid == homes[0])
    dead.kill()
    killed = time.monotonic()
    second = [QUESTIONS[0], seen["first"], QUESTIONS[1]]
    api = {name: until(killed, lambda name=name: ask(name, second, 2)) for name in names}
    page_tries = [until(killed, lambda page=page: page.say(QUESTIONS[1], 2)) for page in pages]
    seen["seconds_until_all_went_on"] = round(time.monotonic() - killed, 1)
    seen["second"] = sorted({tries[-1] or "" for tries in api.values()})
    seen["tries"] = sum(map(len, api.values()))
    seen["page_second"] = sorted({tries[-1] or "" for tries in page_tries})
    seen["page_tries"] = sum(map(len, page_tries))
    while not (is_replaced := len(replicas_but(dead)) == running() == 2) and time.monotonic() < killed + 150:
        time.sleep(0.1)
    seen["replaced"], seen["seconds_until_replaced"] = is_replaced, round(time.monotonic() - killed, 1)
    seen["page_third"] = sorted({page.say(QUESTIONS[0], 3) or "" for page in pages})
    seen["after"] = latencies() | {"mebibytes": memory()}


def until(killed: float, call: Callable[[], str | None]) -> list[str | None]:
    """Call again until there is a reply, for a minute after the kill at most; all results."""
    tries = [call()]
    while tries[-1] is None and time.monotonic() < killed + 60:
        tries.append(call())
    return tries


def start_ray(tries: int = 4) -> None:
    """Start Ray on this machine; Ray gives up after 30 s, which is too early if other programs use the processor."""
    import ray

    for left in reversed(range(tries)):
        try:
            ray.init(
                num_cpus=2,
                include_dashboard=False,
                logging_level=logging.ERROR,
                log_to_driver=False,
                object_store_memory=100 * 2**20,
                _node_ip_address="127.0.0.1",
            )
            return
        except Exception:
            ray.shutdown()
            if not left:
                raise


def on_ray(work: Callable[[dict], None], **settings: object) -> dict:
    """Deploy with arguments of RaySettings, and return what the work has seen."""
    import ray
    from ray import serve

    from ui.server.ray_app import RaySettings, build

    start_ray()
    seen: dict = {}
    try:
        serve.start(http_options={"host": "127.0.0.1", "port": PORT})
        serve.run(build(RaySettings.model_validate({"cpus": 0.5, **settings})), name="xianliao")
        work(seen)
    finally:
        serve.shutdown()
        ray.shutdown()
    return seen


def alone() -> dict:
    with tempfile.TemporaryDirectory() as folder, serving(Path(folder), port=PORT) as (_, process):
        return latencies() | {"mebibytes": mebibytes([psutil.Process(process.pid)])}


def start_in_network(module: str) -> int | None:
    """Run a module again in a network of its own and return its exit code; None if this is that network."""
    if INSIDE in os.environ:
        return None
    begin = namespace()
    if begin is None:
        print("A network of its own needs Linux, unshare, ip, and root or user namespaces.", file=sys.stderr)
        return 2
    return subprocess.run([*begin, sys.executable, "-m", module], cwd=ROOT, env={**os.environ, INSIDE: "1"}).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description="Two replicas on Ray Serve, one of them killed.")
    parser.add_argument("--alone", action="store_true", help="measure one xianliao-serve process instead")
    args = parser.parse_args()
    if not args.alone and (code := start_in_network("tests.ui.ray_smoke")) is not None:
        return code
    print(json.dumps(alone() if args.alone else on_ray(talk), ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
