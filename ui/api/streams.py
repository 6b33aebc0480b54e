"""Replies of one API request while they are decoded."""

from __future__ import annotations

import asyncio
import json
import time
from bisect import bisect_left
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from chatbot.chat.bot import Reply, Request, candidate_seeds
from chatbot.chat.worker import Job, Worker
from chatbot.errors import XianliaoError
from ui.api.history import until_stop
from ui.api.requests import CompletionRequest
from ui.api.schemas import ApiError, as_api_error
from ui.server.logs import FAILURES
from ui.server.metrics import Metrics
from ui.server.work import SENDER


@dataclass
class ReplyState:
    """One of the replies of a request while it grows.

    Attributes:
        reply: Newest state from the worker, or None before the first.
        text: Text that was sent to the client.
        thoughts: Thoughts that were sent to the client.
        finish: OpenAI's finish reason, or None while the reply is not complete.
        scored: Number of tokens whose log-probabilities were sent.
    """

    reply: Reply | None = None
    text: str = ""
    thoughts: str = ""
    finish: str | None = None
    scored: int = 0

    def new_thoughts(self) -> str:
        """Return the thoughts that were not returned yet."""
        thoughts = "" if self.reply is None else self.reply.thoughts
        new, self.thoughts = thoughts[len(self.thoughts) :], thoughts
        return new

    def update(self, reply: Reply, ended: bool, stops: Sequence[str]) -> str:
        """Store the newest state of the reply and return the new part of its text."""
        self.reply = reply
        if reply.stop_reason == "safety":  # a stop sequence does not cut a help line off
            self.text, self.finish = reply.text, "content_filter"
            return self.text
        text, stopped = until_stop(reply.text, stops, ended)
        new, self.text = text[len(self.text) :], max(self.text, text, key=len)
        if stopped:
            self.finish = "stop"
        elif ended:
            self.finish = "length" if reply.stop_reason in ("floor", "limit") else "stop"
        return new


class Replies:
    """Replies of one request. Call `close` when the client has received them or has disconnected.

    Args:
        worker: Worker that decodes them.
        request: First reply; the others differ in their seeds.
        body: Number of replies and stop sequences.
        metrics: Counters of the server.

    Attributes:
        first_token_seconds: Seconds from the request to its first token, or None before it.
        states: One `ReplyState` per reply.
    """

    def __init__(self, worker: Worker, request: Request, body: CompletionRequest, metrics: Metrics):
        self.stops, self.metrics, self.started = body.stop, metrics, request.started
        self.model, self._bot, self._has_logprobs = worker.bot.name, worker.bot, body.logprobs
        self.first_token_seconds: float | None = None
        self.prompt_tokens = len(request.prompt.input_ids)
        if body.variation is None:
            requests = [replace(request, seed=seed) for seed in candidate_seeds(request.seed, body.n)]
        else:  # variants of one reply
            requests = [replace(request, variation=request.variation + number) for number in range(body.n)]
        self.states = [ReplyState() for _ in requests]
        self._open = list(range(body.n))
        self._latest: dict[int, Reply] = {}
        self._ended: dict[int, BaseException | None] = {}
        self._changed = asyncio.Event()
        loop = asyncio.get_running_loop()
        self._jobs: list[Job] = []

        def deliver(index: int, item: Reply | BaseException | None) -> None:
            loop.call_soon_threadsafe(self._receive, index, item)

        try:
            for index, single in enumerate(requests):
                self._jobs.append(worker.submit(single, partial(deliver, index)))
        except XianliaoError:
            self.close()
            raise

    def _receive(self, index: int, item: Reply | BaseException | None) -> None:
        """Store what the worker delivered; a slow client gets the latest state of a reply, not every state."""
        if isinstance(item, Reply):
            self._latest[index] = item
        else:
            self._ended[index] = item
        self._changed.set()

    def close(self) -> None:
        """Cancel the replies that are not complete and count them with the reason `stopped`."""
        for job in self._jobs:
            job.cancel()
        for index in self._open:
            reply = self._latest.get(index, self.states[index].reply)
            if reply is not None and self._ended.get(index) is None:
                self.metrics.count_reply(self.model, reply)
        self._open = []

    async def pieces(self) -> AsyncIterator[tuple[int, str]]:
        """Yield (index of a reply, new text) until all replies are complete; the text is empty for new thoughts.

        Raises:
            XianliaoError, ApiError: A reply failed.
        """
        while self._open:
            await self._changed.wait()
            self._changed.clear()
            for index in [index for index in self._open if index in self._latest or index in self._ended]:
                new, state = self._advance(index), self.states[index]
                if new or (state.reply is not None and len(state.reply.thoughts) > len(state.thoughts)):
                    yield index, new

    def _advance(self, index: int) -> str:
        """Bring a reply up to date and return the new part of its text.

        Raises:
            XianliaoError, ApiError: The reply failed.
        """
        if (error := self._ended.get(index)) is not None:
            raise _reported(error)
        state = self.states[index]
        reply = self._latest.pop(index, state.reply)
        assert reply is not None  # a worker delivers a state before the end
        if self.first_token_seconds is None and reply.stop_reason != "safety":
            self.first_token_seconds = time.perf_counter() - self.started
            self.metrics.first_token.observe(self.first_token_seconds)
        new = state.update(reply, index in self._ended, self.stops)
        if state.finish is not None:
            self._open.remove(index)
            self._jobs[index].cancel()
            self.metrics.count_reply(self.model, reply)
        return new

    def new_logprobs(self, index: int) -> dict | None:
        """Return the log-probabilities of the tokens of the text so far that were not returned yet.

        None if the client did not ask for them. Tokens after a stop sequence are left out.
        """
        state = self.states[index]
        if not self._has_logprobs or state.reply is None:
            return None
        scores, tokenizer = state.reply.scores, self._bot.tokenizer
        count = len(scores)
        if len(state.text) < len(state.reply.text):  # the fewest tokens that spell the text
            ids, length = state.reply.token_ids, len(state.text)
            count = bisect_left(
                range(count), length, key=lambda end: len(tokenizer.decode_complete(ids[:end]).lstrip())
            )
        new, state.scored = scores[state.scored : count], max(count, state.scored)
        pieces, end_name = self._bot.vocabulary.pieces, tokenizer.tokens([self._bot.vocabulary.end_id])[0]

        def entry(token: int, log_prob: float) -> dict:
            text, known = pieces[token].decode("utf-8", "replace"), pieces[token] or None
            return {"token": text if known else end_name, "logprob": log_prob, "bytes": known and list(known)}

        content = [
            {**entry(score.token_id, score.log_prob), "top_logprobs": [entry(*best) for best in score.best]}
            for score in new
        ]
        return {"content": content, "refusal": None}

    @property
    def replies(self) -> list[Reply]:
        """The replies so far, without those that have not begun."""
        return [state.reply for state in self.states if state.reply is not None]

    @property
    def usage(self) -> dict[str, int]:
        """Token counts in OpenAI's format."""
        completion = sum(reply.generated_tokens for reply in self.replies)
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": completion,
            "total_tokens": self.prompt_tokens + completion,
        }


def _reported(error: BaseException) -> Exception:
    """Return the error that the client sees; an unexpected one is logged, a few times per minute and client."""
    if isinstance(error, XianliaoError):
        return error
    FAILURES.log(SENDER.get(), "a reply failed", "error", error)
    return ApiError(500, "This reply failed. Try again, or rephrase the message.", "server_error", "failed")


async def events(replies: Replies, head: dict, body: CompletionRequest) -> AsyncIterator[str]:
    """Yield the server-sent events of a streamed response; an error after the first event is an event, too.

    Args:
        replies: Replies of the request.
        head: Fields `id`, `created` and `model` of every event.
        body: The request.
    """

    head = {**head, "object": "chat.completion.chunk"}
    usage = {"usage": None} if body.include_usage else {}  # as OpenAI: null in every event but the last

    def chunk(index: int, delta: dict, finish: str | None = None) -> str:
        logprobs = replies.new_logprobs(index)
        choice = {"index": index, "delta": delta, "finish_reason": finish, "logprobs": logprobs}
        return _event({**head, "choices": [choice], **usage})

    try:
        for index in range(len(replies.states)):
            yield chunk(index, {"role": "assistant", "content": "", "refusal": None})
        async for index, new in replies.pieces():
            if thoughts := replies.states[index].new_thoughts():
                yield chunk(index, {"reasoning_content": thoughts})
            if new:
                yield chunk(index, {"content": new})
        for index, state in enumerate(replies.states):
            yield chunk(index, {}, state.finish)
        if body.include_usage:
            yield _event({**head, "choices": [], "usage": replies.usage})
        yield "data: [DONE]\n\n"
    except XianliaoError as error:
        yield _event({"error": as_api_error(error).content})
    except ApiError as error:
        yield _event({"error": error.content})


def _event(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"
