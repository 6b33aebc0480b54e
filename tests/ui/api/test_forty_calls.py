"""Forty calls by the official client and by LangChain against a running server, each with its right value."""

from __future__ import annotations

import asyncio
import math

import openai
import pytest

langchain_openai = pytest.importorskip("langchain_openai")

from langchain_core.messages import AIMessage, HumanMessage, SystemMessage, ToolMessage  # noqa: E402
from langchain_core.output_parsers import StrOutputParser  # noqa: E402
from langchain_core.prompts import ChatPromptTemplate  # noqa: E402

from tests.ui.api.conftest import HELLO  # noqa: E402

pytestmark = pytest.mark.slow
CALLED = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
AFTER_A_TOOL = [
    *HELLO,
    {"role": "assistant", "content": None, "tool_calls": [CALLED]},
    {"role": "tool", "tool_call_id": "a", "content": "晴"},
    {"role": "assistant", "content": "今天晴"},
    {"role": "user", "content": "好吗"},
]
PARTS = [{"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]}]
PICTURE = [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:image/png;base64,AA"}}]}]


def weather(city: str) -> str:
    """Weather of a city."""
    return city


class Calls:
    """Clients of one server, and what its bot replies.

    Args:
        server: Address, bot and app of the server.
    """

    def __init__(self, server):
        self.base_url, self.bot = server[0] + "/v1", server[1]
        self.expected = self.bot.reply(["你好"], seed=1)
        self.runner = (
            asyncio.Runner()
        )  # one event loop: LangChain shares a connection pool among its asynchronous calls

    def openai(self, messages=HELLO, key="secret", **fields):
        with openai.OpenAI(base_url=self.base_url, api_key=key, max_retries=0) as client:
            answer = client.chat.completions.create(**{"model": "tiny", "messages": messages, "seed": 1, **fields})
            return list(answer) if fields.get("stream") else answer

    def text(self, *arguments, **fields):
        return self.openai(*arguments, **fields).choices[0].message.content

    def other(self, call):
        with openai.OpenAI(base_url=self.base_url, api_key="secret", max_retries=0) as client:
            return call(client)

    def lang(self, key="secret", **fields):
        fields = {"model": "tiny", "seed": 1, "max_retries": 0, "api_key": key, **fields}
        return langchain_openai.ChatOpenAI(base_url=self.base_url, **fields)


def joined(chunks, index=0):
    choices = [choice for chunk in chunks for choice in chunk.choices if choice.index == index]
    return "".join(choice.delta.content or "" for choice in choices)


async def openai_async(calls, stream):
    async with openai.AsyncOpenAI(base_url=calls.base_url, api_key="secret", max_retries=0) as client:
        answer = await client.chat.completions.create(model="tiny", messages=HELLO, seed=1, stream=stream)
        return joined([chunk async for chunk in answer]) if stream else answer.choices[0].message.content


async def lang_stream(calls):
    return "".join([chunk.content async for chunk in calls.lang().astream("你好")])


def helper_stream(client):
    with client.chat.completions.stream(model="tiny", messages=HELLO, seed=1) as stream:
        deltas = [event.delta for event in stream if event.type == "content.delta"]
        assert "".join(deltas) == stream.get_final_completion().choices[0].message.content
        return "".join(deltas)


def seeds(calls, count):
    return [calls.bot.reply(["你好"], seed=seed) for seed in range(1, count + 1)]


def is_sound(entries):
    """Whether log-probabilities are those of tokens: at most 0, the best of them first, three for every token."""
    return entries and all(
        entry["logprob"] <= 0
        and len(entry["top_logprobs"]) == 3
        and [other["logprob"] for other in entry["top_logprobs"]]
        == sorted((other["logprob"] for other in entry["top_logprobs"]), reverse=True)
        for entry in entries
    )


RIGHT = {  # the right value is True, or the reply to 你好
    "openai: plain": lambda c: c.text() == c.expected,
    "openai: stream": lambda c: joined(c.openai(stream=True)) == c.expected,
    "openai: stream with usage": lambda c: (
        c.openai(stream=True, stream_options={"include_usage": True})[-1].usage.completion_tokens
        == c.openai().usage.completion_tokens
    ),
    "openai: helper for streams": lambda c: c.other(helper_stream) == c.expected,
    "openai: async": lambda c: c.runner.run(openai_async(c, False)) == c.expected,
    "openai: async stream": lambda c: c.runner.run(openai_async(c, True)) == c.expected,
    "openai: n": lambda c: len({choice.index for choice in c.openai(n=3).choices}) == 3,
    "openai: n, stream": lambda c: (
        [joined(c.openai(n=2, stream=True), index) for index in (0, 1)]
        == [choice.message.content for choice in c.openai(n=2).choices]
    ),
    "openai: logprobs": lambda c: is_sound(
        [entry.model_dump() for entry in c.openai(logprobs=True, top_logprobs=3).choices[0].logprobs.content]
    ),
    "openai: penalties": lambda c: (
        c.text(presence_penalty=2, frequency_penalty=-2)
        == c.bot.reply(["你好"], seed=1, presence_penalty=2, frequency_penalty=-2)
    ),
    "openai: bias": lambda c: (
        c.text(logit_bias={"40": 100}, max_tokens=3)
        == c.bot.reply(["你好"], seed=1, logit_bias={40: 100}, max_reply_tokens=3)
    ),
    "openai: tools passed": lambda c: c.text(tools=[TOOL], tool_choice="auto") == c.expected,
    "openai: after a tool": lambda c: c.text(AFTER_A_TOOL) == c.bot.reply(["你好", "今天晴", "好吗"], seed=1),
    "openai: parts": lambda c: c.text(PARTS) == c.expected,
    "openai: nulls": lambda c: (
        c.text(n=None, stop=None, stream=None, max_tokens=None, logprobs=None, user=None) == c.expected
    ),
    "openai: the token limit": lambda c: (
        c.openai(max_tokens=2, logit_bias={"2": -100}).choices[0].finish_reason == "length"
    ),
    "openai: a list of models": lambda c: (
        [model.id for model in c.other(lambda client: client.models.list())] == ["tiny"]
    ),
    "openai: a model": lambda c: c.other(lambda client: client.models.retrieve("tiny")).id == "tiny",
    "langchain: plain": lambda c: c.lang().invoke("你好").content == c.expected,
    "langchain: stream": lambda c: "".join(chunk.content for chunk in c.lang().stream("你好")) == c.expected,
    "langchain: async": lambda c: c.runner.run(c.lang().ainvoke("你好")).content == c.expected,
    "langchain: async stream": lambda c: c.runner.run(lang_stream(c)) == c.expected,
    "langchain: batch": lambda c: [m.content for m in c.lang().batch(["你好", "你好", "你好"])] == [c.expected] * 3,
    "langchain: system and history": lambda c: (
        c.lang()
        .invoke([SystemMessage("你是一只猫"), HumanMessage("你好"), AIMessage("今天晴"), HumanMessage("好吗")])
        .content
        == c.bot.reply(["你好", "今天晴", "好吗"], seed=1)
    ),
    "langchain: a chain": lambda c: (
        (ChatPromptTemplate.from_messages([("human", "{word}好")]) | c.lang() | StrOutputParser()).invoke(
            {"word": "你"}
        )
        == c.expected
    ),
    "langchain: n": lambda c: len(c.lang(n=2).generate([[HumanMessage("你好")]]).generations[0]) == 2,
    "langchain: logprobs": lambda c: is_sound(
        c.lang(logprobs=True, top_logprobs=3).invoke("你好").response_metadata["logprobs"]["content"]
    ),
    "langchain: penalties": lambda c: (
        c.lang(presence_penalty=2, frequency_penalty=-2).invoke("你好").content
        == c.bot.reply(["你好"], seed=1, presence_penalty=2, frequency_penalty=-2)
    ),
    "langchain: tools bound": lambda c: (
        (
            (answer := c.lang().bind_tools([weather]).invoke("你好")).content,
            answer.tool_calls,
        )
        == (c.expected, [])
    ),
    "langchain: after a tool": lambda c: (
        c.lang()
        .invoke(
            [
                HumanMessage("你好"),
                AIMessage("", tool_calls=[{"name": "weather", "args": {}, "id": "a"}]),
                ToolMessage("晴", tool_call_id="a"),
                AIMessage("今天晴"),
                HumanMessage("好吗"),
            ]
        )
        .content
        == c.bot.reply(["你好", "今天晴", "好吗"], seed=1)
    ),
    "langchain: parts": lambda c: c.lang().invoke([HumanMessage(PARTS[0]["content"])]).content == c.expected,
    "langchain: the token limit and usage": lambda c: (
        (
            (answer := c.lang(max_tokens=2, logit_bias={2: -100}).invoke("你好")).response_metadata["finish_reason"],
            answer.usage_metadata["output_tokens"],
        )
        == ("length", 2)
    ),
    "langchain: greedy, a stop sequence": lambda c: (
        reply := c.bot.reply(["你好"], seed=1, method="greedy")
    ).startswith(c.lang(temperature=0).invoke("你好", stop=[reply[-1]]).content),
}

FAULTS = {  # the class of the error and a part of its words
    "openai: an unknown model": (lambda c: c.text(model="gpt-9"), openai.NotFoundError, "no model 'gpt-9'"),
    "openai: a wrong key": (lambda c: c.text(key="wrong"), openai.AuthenticationError, "API key"),
    "openai: a picture": (lambda c: c.text(PICTURE), openai.BadRequestError, "Only text can be read"),
    "openai: another endpoint": (
        lambda c: c.other(lambda client: client.embeddings.create(model="tiny", input="你好")),
        openai.NotFoundError,
        "No route /v1/embeddings. This server has",
    ),
    "langchain: a wrong key": (lambda c: c.lang(key="wrong").invoke("你好"), openai.AuthenticationError, "API key"),
    "langchain: an unknown model": (
        lambda c: c.lang(model="gpt-9").invoke("你好"),
        openai.NotFoundError,
        "no model 'gpt-9'",
    ),
    "langchain: a JSON reply": (
        lambda c: c.lang().bind(response_format={"type": "json_object"}).invoke("你好"),
        openai.BadRequestError,
        "response_format: Replies are plain text",
    ),
}


@pytest.fixture(scope="module")
def calls(server):
    calls = Calls(server)
    with calls.runner:
        yield calls


@pytest.mark.parametrize("name", RIGHT)
def test_a_call_gives_the_right_value(calls, name):
    assert RIGHT[name](calls)


@pytest.mark.parametrize("name", FAULTS)
def test_a_call_that_cannot_be_answered_is_refused_in_words(calls, name):
    call, error, words = FAULTS[name]
    with pytest.raises(error, match=words):
        call(calls)


def test_there_are_forty():
    assert len(RIGHT) + len(FAULTS) == 40
    assert math.isclose(sum(name.startswith("langchain") for name in (*RIGHT, *FAULTS)), 20, abs_tol=3)
