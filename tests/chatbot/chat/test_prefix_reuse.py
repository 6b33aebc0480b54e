"""Tokens that a chat model of another project reads: a turn costs only its own tokens, and usage counts the prompt."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
import torch
from transformers import AutoTokenizer

from chatbot import Chatbot, ChatSession
from chatbot.chat.bot import SNAPSHOT_BYTES
from chatbot.chat.worker import Worker
from tests.chat_models import write_chat_model
from ui.api.requests import CompletionRequest
from ui.api.streams import Replies
from ui.server.metrics import Metrics

LONG = ["今天天气真不错，我们去公园吧？", "好"] * 40


@pytest.fixture(scope="module", params=["qwen2", "llama"])
def folder(request, dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("reuse") / request.param
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], request.param)
    return folder


@pytest.fixture
def bot(folder, monkeypatch) -> SimpleNamespace:
    """A bot that always says 好, and the number of tokens that each of its forward passes read."""
    bot = Chatbot.from_pretrained(folder)
    (token,) = bot.tokenizer.encode("好")
    bot.settings = bot.settings.with_changes(logit_bias={token: 100.0}, max_reply_tokens=1)
    read: list[int] = []
    hidden_states = bot.model.hidden_states

    def counted(input_ids: torch.Tensor, *args, **kwargs):
        read.append(input_ids.numel())
        return hidden_states(input_ids, *args, **kwargs)

    monkeypatch.setattr(bot.model, "hidden_states", counted)
    return SimpleNamespace(bot=bot, read=read)


def test_a_second_turn_reads_only_its_own_tokens(bot):
    chatbot, read = bot.bot, bot.read
    worker = Worker(chatbot)
    try:
        session = ChatSession(worker)
        assert session.reply("今天天气真不错，我们去公园吧？", 1) == "好"
        first = chatbot.request(["今天天气真不错，我们去公园吧？"], 1).prompt.input_ids
        end = len(chatbot.layout.end_of_reply)
        wait_until(lambda: sum(read) >= len(first) + 1 + end)
        assert sum(read) == len(first) + 1 + end  # the prompt, 好, and the end of the turn
        for message in ("几点去", "你好呀！", "hello"):
            read.clear()
            prompt = chatbot.request([*session.turns, message], 1).prompt
            assert session.reply(message, 1) == "好"
            wait_until(lambda prompt=prompt: sum(read) >= len(prompt.pieces[-1][0]) + 1 + end)
            assert sum(read) == len(prompt.pieces[-1][0]) + 1 + end
    finally:
        worker.close()


def wait_until(condition) -> None:
    """Wait until the worker's thread has read the end of a reply, which it does after it has delivered the reply."""
    from time import monotonic, sleep

    end = monotonic() + 30
    while not condition() and monotonic() < end:
        sleep(0.01)


def test_a_state_that_was_evicted_is_read_again_to_the_same_reply(bot):
    chatbot, read = bot.bot, bot.read
    turns = ["你好呀！", "好", "几点去"]
    expected = chatbot.respond(turns, 1)
    whole = sum(read)
    chatbot.snapshots.clear()
    read.clear()
    assert chatbot.respond(turns, 1).token_ids == expected.token_ids
    assert sum(read) == whole == len(chatbot.request(turns, 1).prompt.input_ids) + 1  # and 好


def test_the_least_recently_used_states_go_first_by_their_bytes(bot):
    snapshots = bot.bot.snapshots
    assert snapshots.max_bytes == SNAPSHOT_BYTES  # more than half of these tiny weights
    snapshots.max_bytes = 3 * one_state(bot.bot)
    for message in ("你好呀！", "你好啊！", "你好吗！", "你好哇！"):
        bot.bot.respond([message], 1)
    assert snapshots.bytes <= snapshots.max_bytes
    assert 1 <= len(snapshots) <= 3
    bot.read.clear()
    bot.bot.respond(["你好哇！"], 1)
    assert sum(bot.read) == 1  # the newest is here: 好 alone is read
    bot.read.clear()
    bot.bot.respond(["你好呀！"], 1)
    assert sum(bot.read) == len(bot.bot.request(["你好呀！"], 1).prompt.input_ids) + 1  # the oldest is not


def one_state(bot: Chatbot) -> int:
    bot.respond(["你好呀！"], 1)
    size = bot.snapshots.bytes
    bot.snapshots.clear()
    return size


@pytest.mark.parametrize("turns", [LONG[:1], LONG[:3], LONG[:79]], ids=["one", "three", "truncated"])
def test_usage_counts_the_tokens_that_are_read(bot, folder, turns):
    chatbot, read = bot.bot, bot.read
    theirs = AutoTokenizer.from_pretrained(folder)
    worker = Worker(chatbot)

    async def usage() -> dict:
        body = CompletionRequest(messages=[{"role": "user", "content": "x"}])
        replies = Replies(worker, worker.bot.request(turns, 1), body, Metrics([worker]))
        async for _ in replies.pieces():
            pass
        return replies.usage

    try:
        counted = asyncio.run(usage())
    finally:
        worker.close()
    first = chatbot.request(turns, 1).prompt.first_turn
    remaining = [""] * (first % 2) + turns[first:]  # a history that begins with the bot gets an empty message before it
    messages = [{"role": ("user", "assistant")[index % 2], "content": turn} for index, turn in enumerate(remaining)]
    expected = theirs.apply_chat_template(
        messages, add_generation_prompt=True, return_dict=False, date_string="26 Jul 2024"
    )
    assert counted["prompt_tokens"] == len(expected)
    assert counted["completion_tokens"] == 1  # 好; the end was forced
    assert counted["total_tokens"] == len(expected) + 1
    assert sum(read) >= len(expected)
    assert (first > 0) == (len(turns) == 79)
