"""One replica on Ray Serve that becomes two under load and one again; prints what was seen as JSON.

    python -m tests.ui.ray_scaling             # about a minute and a half; test_deploy.py checks the result

Like ray_smoke, this runs in a network of its own.
"""

from __future__ import annotations

import json
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx

from tests.ui.ray_smoke import ADDRESS, QUESTIONS, Page, on_ray, replicas, running, start_in_network
from tests.ui.serving import endless_checkpoint

LOAD = 6
"""Conversations that stream one reply after the other until the load ends: three times what one replica should have."""

LOAD_TOKENS = 60
NEW = 8
"""New conversations after the first one that the second replica answers."""

DRAINING_SECONDS = 7
"""How long a stream continues at the removed replica; Ray looks every 2 s whether the replica is idle."""

SETTINGS = {
    "replicas": 1,
    "max_replicas": 2,
    "requests_per_replica": 2,
    "average_seconds": 2,
    "upscale_seconds": 1,
    "downscale_seconds": 1,
    "rate_limit": 0,
}


class Conversation:
    """A client that sends the X-Conversation-Id of the last answer back, as deploy/README.md says."""

    def __init__(self, name: str):
        self.header = name
        self.homes: list[str] = []
        self.replies: list[str | None] = []
        self.client = httpx.Client(base_url=ADDRESS, timeout=60)

    @contextmanager
    def open(self, turns: list[str], seed: int, **fields: object) -> Iterator[Iterator[str]]:
        """Yield the pieces of a streamed reply.

        Raises:
            httpx.HTTPError, EOFError: There is no reply, or it has no end.
        """
        messages = [{"role": ("user", "assistant")[n % 2], "content": turn} for n, turn in enumerate(turns)]
        body = {"messages": messages, "seed": seed, "stream": True, **fields}
        headers = {"X-Conversation-Id": self.header}
        with self.client.stream("POST", "/v1/chat/completions", json=body, headers=headers) as answer:
            answer.raise_for_status()
            self.header = answer.headers["x-conversation-id"]
            self.homes.append(self.header.rpartition("@replica-")[2])
            yield pieces(answer)

    def ask(self, turns: list[str], seed: int, **fields: object) -> None:
        """Add the reply to `replies`, None if it was lost."""
        try:
            with self.open(turns, seed, **fields) as reply:
                self.replies.append("".join(reply))
        except (httpx.HTTPError, EOFError):
            self.replies.append(None)


def pieces(answer: httpx.Response) -> Iterator[str]:
    for line in answer.iter_lines():
        if line == "data: [DONE]":
            return
        if line.startswith("data: "):
            event = json.loads(line[6:])
            if "error" in event:
                break
            yield from (choice["delta"].get("content") or "" for choice in event["choices"])
    raise EOFError("the stream has no end")


class Load:
    """Conversations with the checkpoint of long replies, each in a thread."""

    def __init__(self) -> None:
        self.conversations = [Conversation(f"load-{number}") for number in range(LOAD)]
        self._is_over = threading.Event()
        self._threads = [threading.Thread(target=self._talk, args=(each,), daemon=True) for each in self.conversations]
        for thread in self._threads:
            thread.start()

    def _talk(self, conversation: Conversation) -> None:
        while not self._is_over.is_set() and None not in conversation.replies:
            conversation.ask([QUESTIONS[0]], 1, model="long")

    def end(self) -> None:
        """Let every conversation finish its reply."""
        self._is_over.set()
        for thread in self._threads:
            thread.join()


def wait_until(condition: Callable[[], bool], seconds: float) -> float:
    """Return the seconds after which a condition is true.

    Raises:
        TimeoutError: It is not.
    """
    started = time.monotonic()
    while not condition():
        if time.monotonic() > started + seconds:
            raise TimeoutError(condition)
        time.sleep(0.1)
    return round(time.monotonic() - started, 1)


def read_until(stream: Iterator[str], condition: Callable[[], bool]) -> float:
    """Read a reply until a condition is true and return the seconds.

    Raises:
        EOFError: The reply was complete or cut before that.
    """
    started = time.monotonic()
    for _ in stream:
        if condition():
            return round(time.monotonic() - started, 1)
    raise EOFError("the reply ended too early")


def replies_of(conversations: list[Conversation]) -> list[str]:
    """The last replies, each once; an empty text is one that was lost."""
    return sorted({each.replies[-1] or "" for each in conversations})


def page_replies(pages: list[Page], text: str, seed: int) -> list[str]:
    """The replies on the pages, each once; an empty text is one that was lost."""
    return sorted({page.say(text, seed) or "" for page in pages})


def seat_of(page: Page) -> str:
    """The replica in the browser's cookie."""
    return page.client.cookies["xianliao_seat"].rpartition("@replica-")[2]


def scale(seen: dict) -> None:
    """Put load on the replica until there is a second one, end the load, and wait until the second one is gone."""
    started = time.monotonic()
    old, pages = [Conversation(f"old-{number}") for number in range(10)], [Page(ADDRESS) for _ in range(4)]
    for conversation in old:
        conversation.ask([QUESTIONS[0]], 1)
    first = old[0].homes[0]
    seen["first"], seen["page_first"] = replies_of(old), page_replies(pages, QUESTIONS[0], 1)
    turns = [QUESTIONS[0], seen["first"][0], QUESTIONS[1]]

    load = Load()
    seen["seconds_until_added"] = wait_until(lambda: running() == 2, 150)
    new: list[Conversation] = []

    def is_anew() -> bool:
        new.append(Conversation(f"new-{len(new)}"))
        new[-1].ask([QUESTIONS[0]], 1)
        return new[-1].homes[-1:] != [first]

    seen["seconds_until_used"] = wait_until(is_anew, 60)
    at_second = new[-1]
    for _ in range(NEW):
        is_anew()
    for conversation in new:
        conversation.ask(turns, 2)
    for conversation in old:
        conversation.ask(turns, 2)
    seen["second"], seen["second_of_new"] = replies_of(old), replies_of(new)
    seen["page_second"] = page_replies(pages, QUESTIONS[1], 2)
    seen["moved_while_two"] = sum(len(set(each.homes)) > 1 for each in (*old, *new, *load.conversations))
    seen["pages_moved_while_two"] = sum(seat_of(page) != first for page in pages)

    with at_second.open([QUESTIONS[0]], 1, model="endless") as stream:
        load.end()
        seen["seconds_until_removed"] = read_until(stream, lambda: running() == 1)
        removed = time.monotonic()
        for conversation in new:
            if conversation is not at_second:
                conversation.ask(turns, 2)
        read_until(stream, lambda: time.monotonic() > removed + DRAINING_SECONDS)
        seen["processes_while_draining"] = len(replicas())
    seen["seconds_until_gone"] = wait_until(lambda: len(replicas()) == 1, 60)
    everyone = [*old, *new]
    for conversation in everyone:
        conversation.ask(turns, 2)
    seen["last"], seen["page_last"] = replies_of(everyone), page_replies(pages, QUESTIONS[0], 3)
    seen["at_the_end_elsewhere"] = sum(each.homes[-1] != first for each in everyone)
    seen["lost"] = sum(each.replies.count(None) for each in (*everyone, *load.conversations))
    loaded = [reply for each in load.conversations for reply in each.replies]
    seen["load_replies"], seen["load_texts"] = len(loaded), len(set(loaded))
    seen["new"], seen["new_at_second"] = len(new), sum(each.homes[0] != first for each in new)
    seen["seconds"] = round(time.monotonic() - started, 1)


def main() -> int:
    if (code := start_in_network("tests.ui.ray_scaling")) is not None:
        return code
    with tempfile.TemporaryDirectory() as folder:
        long = endless_checkpoint(Path(folder), "long", LOAD_TOKENS, layers=48)
        checkpoints = ["default", str(long), str(endless_checkpoint(Path(folder)))]
        print(json.dumps(on_ray(scale, checkpoint=",".join(checkpoints), **SETTINGS), ensure_ascii=False))
    return 0


if __name__ == "__main__":
    sys.exit(main())
