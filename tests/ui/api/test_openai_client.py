"""What clients of OpenAI's send, through the official client and as bytes: the right value of every call."""

from __future__ import annotations

import asyncio
import json
import math

import httpx
import openai
import pytest
import torch

from chatbot.decoding.candidates import next_candidates
from tests.ui.api.conftest import HELLO, KEY, serving
from ui.api.requests import parse

CALLED = {"id": "a", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}


@pytest.fixture(scope="module", params=["own", "qwen2", "llama"])
def server(request, checkpoint, chat_folder):
    """A server of our tiny bot, of a Qwen-shaped and of a Llama-shaped folder."""
    with serving(checkpoint if request.param == "own" else chat_folder(request.param)) as parts:
        yield parts


@pytest.fixture
def ask(client):
    """Function that asks with the official client and returns the answer and the header X-Ignored."""

    def ask(messages=HELLO, **fields):
        extra = {"extra_body": fields.pop("body")} if "body" in fields else {}
        raw = client.chat.completions.with_raw_response.create(
            **{"model": "tiny", "messages": messages, "seed": 1, **fields, **extra}
        )
        return raw.parse(), raw.headers.get("x-ignored")

    return ask


@pytest.fixture
def post(server):
    """Function that sends a body as it is and returns the status and the error."""

    def post(body, kind="application/json", path="/v1/chat/completions"):
        headers = {**KEY, "Content-Type": kind} if kind else KEY
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        answer = httpx.post(server[0] + path, content=content, headers=headers)
        return answer.status_code, answer.json().get("error")

    return post


def text_of(answer) -> str:
    return answer.choices[0].message.content


def collected(stream) -> str:
    return "".join(chunk.choices[0].delta.content or "" for chunk in stream if chunk.choices)


NULLABLE = (
    *("model", "n", "stream", "stream_options", "seed", "stop", "temperature"),
    *("top_p", "top_k", "min_p", "presence_penalty", "frequency_penalty", "logit_bias", "logprobs"),
    *("top_n_sigma", "xtc_probability", "xtc_threshold", "dry_multiplier", "dry_base", "dry_allowed_length"),
    *("top_logprobs", "max_tokens", "max_completion_tokens", "response_format", "modalities", "audio", "tools"),
    *("tool_choice", "user", "parallel_tool_calls", "functions", "function_call", "metadata", "store"),
    *("reasoning_effort", "service_tier", "prediction"),
)


def test_null_is_the_default_everywhere(server):
    expected = server[1].reply(["你好"], seed=1)
    nulls = dict.fromkeys(NULLABLE)
    answer = httpx.post(server[0] + "/v1/chat/completions", json={**nulls, "messages": HELLO, "seed": 1}, headers=KEY)
    assert answer.json()["choices"][0]["message"]["content"] == expected
    assert "x-ignored" not in answer.headers
    for name in NULLABLE:  # one by one, so that a failure names the field
        parse(json.dumps({"messages": HELLO, name: None}).encode())


@pytest.mark.parametrize(
    "fields",
    [
        {"max_tokens": -1},
        {"max_completion_tokens": -1},
        {"body": {"top_k": -1}},
        {"body": {"top_k": 0}},
        {"body": {"min_p": 0}},
        {"body": {"top_n_sigma": -1, "xtc_probability": 0, "dry_multiplier": 0}},
        {"presence_penalty": 0, "frequency_penalty": 0},
        {"max_tokens": 2**40},
        {"logit_bias": {}},
        {"stop": []},
        {"tools": []},
        {"response_format": {"type": "text"}},
        {"body": {"modalities": ["text"], "tool_choice": "none"}},
    ],
)
def test_off_means_off(ask, server, fields):
    answer, ignored = ask(**fields)
    assert text_of(answer) == server[1].reply(["你好"], seed=1)
    assert ignored in (None, "tool_choice")


def test_a_seed_of_minus_one_is_drawn(ask):
    assert len({text_of(ask(seed=-1, temperature=2)[0]) for _ in range(4)}) > 1


@pytest.mark.parametrize(
    ("fields", "settings"),
    [
        ({"top_p": 0}, {"method": "greedy"}),
        ({"body": {"top_k": 1}}, {"method": "greedy"}),
        ({"body": {"top_k": 3}}, {"top_k": 3}),
        ({"body": {"min_p": 0.2}}, {"min_p": 0.2}),
        ({"body": {"top_n_sigma": 0.5}}, {"top_n_sigma": 0.5}),
        ({"body": {"xtc_probability": 1, "xtc_threshold": 0.02}}, {"xtc_probability": 1, "xtc_threshold": 0.02}),
        (
            {"body": {"dry_multiplier": 9, "dry_base": 3, "dry_allowed_length": 1}},
            {"dry_multiplier": 9, "dry_base": 3, "dry_allowed_length": 1},
        ),
        ({"presence_penalty": 2}, {"presence_penalty": 2}),
        ({"frequency_penalty": -2}, {"frequency_penalty": -2}),
        ({"logit_bias": {"40": 100, "41": -100}}, {"logit_bias": {40: 100, 41: -100}}),
        ({"max_completion_tokens": 3, "max_tokens": 5}, {"max_reply_tokens": 3}),
    ],
)
def test_settings_are_those_of_python(ask, server, fields, settings):
    answer, ignored = ask(**fields)
    expected = server[1].respond(["你好"], seed=1, **settings)
    assert text_of(answer) == expected.text
    assert answer.usage.completion_tokens == expected.generated_tokens
    assert ignored is None


@pytest.mark.parametrize("limit", [1, 2, 5])
def test_usage_counts_what_was_generated(ask, limit):
    for n in (1, 3):
        answer = ask(max_tokens=limit, n=n, logit_bias={"2": -100})[0]  # [SEP]: no reply ends by itself
        assert answer.usage.completion_tokens == limit * n
        assert {choice.finish_reason for choice in answer.choices} == {"length"}


def test_usage_of_a_reply_that_a_stop_sequence_cuts(ask, server):
    reply = server[1].respond(["你好"], seed=1)
    counts = []
    for _ in range(10):  # on a busy machine all tokens may be generated before the stop is seen
        answer = ask(stop=[reply.text[1], "x", "y", "z"])[0]
        assert text_of(answer) == reply.text[: reply.text.index(reply.text[1])]
        assert answer.choices[0].finish_reason == "stop"
        counts.append(answer.usage.completion_tokens)
        if counts[-1] < reply.generated_tokens:
            break
    assert 0 < counts[-1] < reply.generated_tokens, counts


def expected_scores(bot, reply, count):
    """log p of each token and the best `count`, computed in one pass over the whole reply."""
    prompt = bot.layout.prompt(bot.encode_turns(["你好"]), bot.context_tokens)
    ids = torch.tensor([[*prompt.input_ids, *reply.token_ids]])
    speakers = torch.tensor([[*prompt.speaker_ids, *[1] * len(reply.token_ids)]])
    with torch.inference_mode():
        logits = bot.model(ids, token_type_ids=speakers).logits[0, len(prompt.input_ids) - 1 :]
    for position, token in enumerate(reply.token_ids):
        replies = [list(reply.token_ids[:position])]
        log_p = next_candidates(
            logits[position : position + 1], bot.settings, bot.vocabulary, replies, [[]]
        ).model_log_probs[0]
        yield log_p[token].item(), sorted(log_p.tolist(), reverse=True)[:count]


@pytest.mark.parametrize("fields", [{}, {"temperature": 0}, {"presence_penalty": 2, "stop": "？"}])
def test_logprobs_are_the_models_own(ask, server, fields):
    bot = server[1]
    answer = ask(logprobs=True, top_logprobs=3, **fields)[0].choices[0]
    settings = {"top_logprobs": 3} | ({"method": "greedy"} if "temperature" in fields else {})
    settings |= {"presence_penalty": 2} if "presence_penalty" in fields else {}
    reply = bot.respond(["你好"], seed=1, **settings)
    content = answer.logprobs.content
    assert (
        b"".join(bytes(entry.bytes) for entry in content).decode("utf-8", "ignore").startswith(answer.message.content)
    )
    for entry, token, (expected, best) in zip(content, reply.token_ids, expected_scores(bot, reply, 3), strict=False):
        assert bytes(entry.bytes) == bot.vocabulary.pieces[token]
        assert entry.logprob == pytest.approx(expected, abs=1e-3)
        assert [other.logprob for other in entry.top_logprobs] == pytest.approx(best, abs=1e-3)
    if not fields:
        assert len(content) == len(reply.token_ids)
        ends = sum(entry.logprob for entry in content)
        assert reply.log_prob <= ends + 1e-6


def test_logprobs_of_a_stream_are_those_of_the_whole(ask, client):
    fields = {"model": "tiny", "messages": HELLO, "seed": 1, "logprobs": True, "top_logprobs": 2, "n": 2}
    whole = client.chat.completions.create(**fields)
    chunks = list(client.chat.completions.create(**fields, stream=True))
    for choice in whole.choices:
        parts = [c.choices[0].logprobs for c in chunks if c.choices[0].index == choice.index]
        streamed = [entry for part in parts if part for entry in part.content]
        assert [entry.bytes for entry in streamed] == [entry.bytes for entry in choice.logprobs.content]
        for one, other in zip(streamed, choice.logprobs.content, strict=True):  # rows of a batch round differently
            assert one.logprob == pytest.approx(other.logprob, abs=1e-4)
            assert [best.bytes for best in one.top_logprobs] == [best.bytes for best in other.top_logprobs]
    plain = ask(logprobs=True)[0].choices[0].logprobs.content
    assert [entry.top_logprobs for entry in plain] == [[] for _ in plain]
    assert ask()[0].choices[0].logprobs is None


def test_penalties_and_bias_change_what_is_said(ask, server):
    token = server[1].vocabulary.pieces.index("的".encode())
    biased = text_of(ask(logit_bias={str(token): 100}, max_tokens=6)[0])
    assert biased == "的" * 6
    punished = text_of(ask(logit_bias={str(token): 5}, frequency_penalty=2, max_tokens=12, temperature=0)[0])
    free = text_of(ask(logit_bias={str(token): 5}, max_tokens=12, temperature=0)[0])
    assert punished.count("的") < free.count("的")


@pytest.mark.parametrize("bias", [-100, 100])
def test_a_bias_on_the_end_keeps_the_bound(ask, server, bias):
    answer = ask(logit_bias={str(server[1].vocabulary.end_id): bias}, temperature=2)[0]
    assert answer.usage.completion_tokens <= server[1].settings.bound_tokens + 1
    assert bias < 0 or answer.usage.completion_tokens == 2  # one token, and the end


def test_tool_messages_and_null_content_are_left_out_and_named(ask, server):
    messages = [
        {"role": "developer", "content": "你是一只猫"},
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [CALLED]},
        {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "晴"}]},
        {"role": "assistant", "content": "今天晴"},
        {"role": "function", "name": "weather", "content": "雨"},
        {"role": "user", "content": [{"type": "text", "text": "好"}, {"type": "text", "text": "吗"}], "name": "小明"},
    ]
    answer, ignored = ask(messages)
    reads_system = server[1].layout.takes_system
    system = {"system": "你是一只猫"} if reads_system else {}
    assert text_of(answer) == server[1].reply(["你好", "今天晴", "好吗"], seed=1, **system)
    names = ["developer", "assistant without content", "tool", "function", "tool_calls", "name"]
    assert ignored.split(", ") == names[reads_system:]
    answer, _ = ask(messages[:4])  # what an agent sends after its tool has run
    assert text_of(answer) == server[1].reply(["你好"], seed=1, **system)


@pytest.mark.parametrize(
    ("fields", "names"),
    [
        (
            {"tools": [TOOL], "tool_choice": "auto", "parallel_tool_calls": True},
            "tools, parallel_tool_calls, tool_choice",
        ),
        ({"user": "u", "metadata": {"a": "b"}, "store": True}, "user, metadata, store"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"body": {"repetition_penalty": 1.3, "坏 名": 1}}, "repetition_penalty, 1 other fields"),
        ({"body": {"stream_options": {"include_usage": True}}}, "stream_options"),
    ],
)
def test_what_has_no_effect_is_named(ask, server, fields, names):
    answer, ignored = ask(**fields)
    assert sorted(ignored.split(", ")) == sorted(names.split(", "))
    assert text_of(answer) == server[1].reply(["你好"], seed=1)


@pytest.mark.parametrize(
    ("fields", "words", "param"),
    [
        ({"stop": list("abcde")}, "stop: At most 4 stop sequences are allowed, got 5.", "stop"),
        ({"stop": [1]}, "stop: It must be a text or a list of texts.", "stop"),
        ({"response_format": {"type": "json_object"}}, "response_format: Replies are plain text", "response_format"),
        ({"modalities": ["text", "audio"]}, "modalities: Replies are plain text", "modalities"),
        ({"audio": {"voice": "alloy", "format": "mp3"}}, "audio: Replies are plain text, not sound", "audio"),
        ({"tools": [TOOL], "tool_choice": "required"}, "tool_choice: The model cannot call functions", "tool_choice"),
        ({"top_logprobs": 2}, "top_logprobs needs logprobs: true.", None),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs: ", "top_logprobs"),
        ({"presence_penalty": 99}, "presence_penalty: ", "presence_penalty"),
        ({"frequency_penalty": -2.5}, "frequency_penalty: ", "frequency_penalty"),
        ({"logit_bias": {"5": 101}}, "logit_bias: The bias of token 5 must be a number from -100 to 100", "logit_bias"),
        ({"logit_bias": {"你": 1}}, "logit_bias: A key must be a token id, got '你'", "logit_bias"),
        ({"logit_bias": {"9999": 1}}, "logit_bias has token 9999, and the vocabulary has 0 to ", None),
        ({"top_k": -2}, "top_k: ", "top_k"),
        ({"min_p": 1.5}, "min_p: ", "min_p"),
        ({"xtc_threshold": 2}, "xtc_threshold: ", "xtc_threshold"),
        ({"dry_base": 0}, "dry_base: ", "dry_base"),
        ({"temperature": math.nan}, "body: it is not JSON|temperature: ", None),
        ({"n": True}, "n: Input should be a valid integer", "n"),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0: A user message needs content.", "messages.0"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}]},
            "messages.0: Only text can be read, and part 1 is image_url.",
            "messages.0",
        ),
        (
            {"messages": [{"role": "user", "content": ["你好"]}]},
            "messages.0: Part 1 of the content must be an object",
            None,
        ),
        ({"messages": [{"role": "user", "content": 5}]}, "messages.0: The content must be a text", None),
        ({"messages": [{"role": "user", "content": "\u200b\ufeff"}]}, "The message is empty", None),
    ],
)
def test_a_fault_is_named(post, fields, words, param):
    status, error = post({"messages": HELLO, **fields})
    assert status == 400
    assert any(word in error["message"] for word in words.split("|"))
    assert error["message"].endswith(".")
    assert error["type"] == "invalid_request_error"
    assert param is None or error["param"] == param


@pytest.mark.parametrize(
    ("body", "kind", "words"),
    [
        (b'{"messages"', None, "Send the header Content-Type: application/json, which is missing."),
        (b"{}", "application/x-www-form-urlencoded", "application/json, got 'application/x-www-form-urlencoded'."),
        (
            json.dumps({"messages": HELLO}, ensure_ascii=False).encode("gbk"),
            "application/json",
            "not UTF-8 (byte 0xc4 at",
        ),
        (b'{"messages": [}', "application/json", "body: it is not JSON (expected value at line 1 column 15)."),
        (b"[1]", "application/json", "body: "),
        (b"", "application/json", "body: it is not JSON (EOF"),
    ],
)
def test_a_body_that_is_not_a_request_is_explained(post, body, kind, words):
    status, error = post(body, kind)
    assert status == 400
    assert words in error["message"]
    assert error["type"] == "invalid_request_error"


def test_a_byte_order_mark_and_a_charset_do_no_harm(post):
    assert post(b"\xef\xbb\xbf" + json.dumps({"messages": HELLO}).encode(), "application/json; charset=utf-8")[0] == 200


def test_models_one_by_one(client, server):
    model = client.models.retrieve("tiny")
    assert model == client.models.list().data[0]
    assert client.models.retrieve("default").id == "tiny"
    with pytest.raises(openai.NotFoundError, match="no model 'gpt-9'") as caught:
        client.models.retrieve("gpt-9")
    assert caught.value.code == "model_not_found"
    assert httpx.post(server[0] + "/v1/models/tiny", headers=KEY).headers["allow"] == "GET, HEAD"
    assert httpx.get(server[0] + "/v1/models/tiny").status_code == 401


@pytest.mark.parametrize("path", ["/healthz", "/metrics", "/v1/models", "/v1/models/tiny", "/openapi.json"])
def test_head_and_a_trailing_slash_are_as_get(server, path):
    plain = httpx.get(server[0] + path, headers=KEY)
    head = httpx.head(server[0] + path, headers=KEY)
    assert (head.status_code, head.content) == (200, b"")
    assert head.headers["content-type"] == plain.headers["content-type"]
    assert httpx.get(server[0] + path + "/", headers=KEY).status_code == 200
    if path not in ("/healthz",):
        assert httpx.head(server[0] + path).status_code == 401


def test_a_trailing_slash_of_a_completion(post):
    assert post({"messages": HELLO}, path="/v1/chat/completions/")[0] == 200


def test_a_base_url_without_v1_is_answered_with_words(server):
    with (
        openai.OpenAI(base_url=server[0], api_key="secret", max_retries=0) as client,
        pytest.raises(openai.NotFoundError, match="/v1/chat/completions") as caught,
    ):
        client.chat.completions.create(model="tiny", messages=HELLO)
    assert caught.value.body["message"].startswith("There is nothing at this address.")
    assert httpx.get(server[0] + "/models", headers=KEY).status_code == 404


def test_async_clients_and_streams(server):
    async def run():
        async with openai.AsyncOpenAI(base_url=server[0] + "/v1", api_key="secret", max_retries=0) as client:
            create = client.chat.completions.create
            several = [create(model="tiny", messages=HELLO, seed=seed) for seed in range(4)]
            texts = [text_of(answer) for answer in await asyncio.gather(*several)]
            stream = await create(model="tiny", messages=HELLO, seed=1, stream=True)
            parts = [chunk.choices[0].delta.content or "" async for chunk in stream]
            return texts, "".join(parts)

    texts, streamed = asyncio.run(run())
    assert texts == [server[1].reply(["你好"], seed=seed) for seed in range(4)]
    assert streamed == texts[1]


def test_a_stream_ends_with_its_usage_and_says_null_before(client):
    fields = {"model": "tiny", "messages": HELLO, "seed": 1, "stream": True}
    chunks = list(client.chat.completions.create(**fields, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens > 0
    assert all(chunk.usage is None and "usage" in chunk.model_fields_set for chunk in chunks[:-1])
    plain = list(client.chat.completions.create(**fields, stream_options={"include_usage": None}))
    assert collected(plain) == collected(chunks)
    assert all("usage" not in chunk.model_fields_set for chunk in plain)


def test_what_is_typed_is_read_as_training_data(ask, server):
    expected = server[1].reply(["你好吗ABC1"], seed=1)
    for text in ("你好\u200b吗ABC1", "你\u3000好吗\ufeffABC1", "你好\u00a0吗ＡＢＣ１", " 你好吗ABC1\n"):
        assert text_of(ask([{"role": "user", "content": text}])[0]) == expected
