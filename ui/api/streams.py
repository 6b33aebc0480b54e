"""The replies of one request of the API while they are decoded."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace

from chatbot.chat.bot import Reply, Request, candidate_seeds
from chatbot.chat.worker import Job, Worker
from chatbot.errors import XianliaoError
from ui.api.history import until_stop
from ui.api.schemas import ApiError, Completion, as_api_error
from ui.server.logs import LOGGER
from ui.server.metrics import Metrics


@dataclass
class Choice:
    """One of the replies of a request, as far as it is."""

    reply: Reply | None = None
    text: str = ""
    finish: str | None = None

    def take(self, reply: Reply, ended: bool, stops: Sequence[str]) -> str:
        """Takes the next state of the reply and returns what is new of the text."""
        self.reply = reply
        if reply.stop_reason == "safety":  # a stop sequence does not cut a help line off
            self.text, self.finish = reply.text, "content_filter"
            return self.text
        text, stopped = until_stop(reply.text, stops, ended)
        new, self.text = text[len(self.text) :], max(self.text, text, key=len)
        if stopped:
            self.finish = "stop"
        elif ended:
            self.finish = "length" if reply.stop_reason == "limit" else "stop"
        return new


class Answers:
    """The replies of one request; `close` frees their places.

    Args:
        worker: Who decodes them.
        request: The first of them; the others have seeds of their own.
        body: How many there are, and where they stop.

    Attributes:
        first_token_seconds: From the request to the first token, when there is one.
    """

    def __init__(self, worker: Worker, request: Request, body: Completion, metrics: Metrics):
        self.stops, self.metrics, self.started = body.stops, metrics, request.started
        self.model, self.first_token_seconds = worker.bot.name, None
        requests = [replace(request, seed=seed) for seed in candidate_seeds(request.seed, body.n)]
        self.prompt_tokens = len(request.prompt.input_ids)
        self.choices = [Choice() for _ in requests]
        self._going = list(range(body.n))
        self._latest: dict[int, Reply] = {}
        self._ended: dict[int, BaseException | None] = {}
        self._news = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._jobs: list[Job] = []
        try:
            for number, each in enumerate(requests):

                def deliver(what, number=number):
                    loop.call_soon_threadsafe(self._take, number, what)

                self._jobs.append(worker.submit(each, deliver))
        except XianliaoError:
            self.close()
            raise

    def _take(self, number: int, what: Reply | BaseException | None) -> None:
        """Whoever is slow gets the latest state of a reply, not every one."""
        if isinstance(what, Reply):
            self._latest[number] = what
        else:
            self._ended[number] = what
        self._news.set()

    def close(self) -> None:
        """Frees the places, and counts the replies that the client left in the middle; those say `stopped`."""
        for job in self._jobs:
            job.cancel()
        for number in self._going:
            reply = self._latest.get(number, self.choices[number].reply)
            if reply is not None and self._ended.get(number) is None:
                self.metrics.count_reply(self.model, reply)
        self._going = []

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """(which reply, new text), until all have ended.

        Raises:
            XianliaoError, ApiError: A reply failed.
        """
        while self._going:
            await self._news.wait()
            self._news.clear()
            for number in [number for number in self._going if number in self._latest or number in self._ended]:
                if (error := self._ended.get(number)) is not None:
                    raise _in_words(error)
                choice, ended = self.choices[number], number in self._ended
                reply = self._latest.pop(number, choice.reply)
                if self.first_token_seconds is None and reply.stop_reason != "safety":
                    self.first_token_seconds = time.perf_counter() - self.started
                    self.metrics.first_token.observe(self.first_token_seconds)
                new = choice.take(reply, ended, self.stops)
                if new:
                    yield number, new
                if choice.finish is not None:
                    self._going.remove(number)
                    self._jobs[number].cancel()
                    self.metrics.count_reply(self.model, reply)

    @property
    def replies(self) -> list[Reply]:
        """As far as they got."""
        return [choice.reply for choice in self.choices if choice.reply is not None]

    @property
    def usage(self) -> dict:
        completion = sum(len(reply.token_ids) + 1 for reply in self.replies if reply.stop_reason != "safety")
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


def _in_words(error: BaseException) -> Exception:
    if isinstance(error, XianliaoError):
        return error
    LOGGER.error("a reply failed", exc_info=error)
    return ApiError(500, "This reply failed; try again, or with other words.", "server_error", "failed")


async def events(answers: Answers, head: dict, body: Completion) -> AsyncIterator[str]:
    """Server-sent events of a streamed completion; an error in the middle is an event too."""

    def chunk(index: int, delta: dict, finish: str | None = None) -> str:
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": None}
        return _event({**head, "object": "chat.completion.chunk", "choices": [choice]})

    try:
        for index in range(len(answers.choices)):
            yield chunk(index, {"role": "assistant", "content": ""})
        async for index, new in answers.pieces():
            yield chunk(index, {"content": new})
        for index, choice in enumerate(answers.choices):
            yield chunk(index, {}, choice.finish)
        if body.stream_options is not None and body.stream_options.include_usage:
            yield _event({**head, "object": "chat.completion.chunk", "choices": [], "usage": answers.usage})
        yield "data: [DONE]\n\n"
    except XianliaoError as error:
        yield _event({"error": as_api_error(error).content})
    except ApiError as error:
        yield _event({"error": error.content})


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
