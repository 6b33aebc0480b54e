"""The server's options for the length of histories and of thinking blocks."""

from __future__ import annotations

import subprocess
import sys

import pytest
from fastapi.testclient import TestClient

from chatbot import Chatbot
from chatbot.errors import CheckpointError
from tests.chat_models import write_chat_model
from ui.checkpoints import load_bots
from ui.cli import build_parser, check_arguments
from ui.options import ServeOptions
from ui.server.app import create_app


@pytest.fixture(scope="module")
def folder(dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("lengths") / "model"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], "qwen3", max_position_embeddings=4096)
    return folder


@pytest.mark.parametrize(("asked", "context"), [(None, 1024), (300, 300), (1500, 1500), (8192, 2047)])
def test_the_history_has_the_length_that_was_asked_for_or_half_of_the_model(folder, asked, context):
    (bot,) = load_bots([str(folder)], context_tokens=asked)
    assert (bot.context_tokens, bot.max_message_tokens) == (context, context // 2)
    turns = ["今天天气真不错，我们去公园吧？"] * 401
    prompt = bot.request(turns).prompt
    assert context // 2 < len(prompt.input_ids) <= context
    assert bot.within_limits(bot.settings.with_changes(max_reply_tokens=10**6)).limit_tokens <= 2048
    assert bot.settings.floor_max_start_tokens == max(512, min(context, 2048 - 2 * 128))


def test_our_own_model_reads_no_more_than_in_training(checkpoint):
    trained = Chatbot.from_pretrained(checkpoint).context_tokens
    assert Chatbot.from_pretrained(checkpoint, context_tokens=8192).context_tokens == trained
    assert Chatbot.from_pretrained(checkpoint, context_tokens=100).context_tokens == 100


def test_lengths_out_of_range_are_refused_in_words(folder, capsys):
    with pytest.raises(CheckpointError, match="The history may have 64 to 8192 tokens, got 9"):
        Chatbot.from_pretrained(folder, context_tokens=9)
    for option, value, words in (
        ("--context-tokens", "63", "must be from 64 to 8192, got 63"),
        ("--context-tokens", "8193", "must be from 64 to 8192, got 8193"),
        ("--thinking-tokens", "0", "must be from 1 to 4096, got 0"),
        ("--thinking-tokens", "4097", "must be from 1 to 4096, got 4097"),
        ("--max-rows", "65", "must be from 1 to 64, got 65"),
    ):
        parser = build_parser()
        with pytest.raises(SystemExit):
            check_arguments(parser, parser.parse_args([option, value]))
        assert f"{option} {words}" in capsys.readouterr().err


def test_int8_of_such_a_folder_is_explained_in_one_line(folder):
    command = [sys.executable, "-m", "chatbot", "--checkpoint", str(folder), "--dtype", "int8", "--seed", "1"]
    result = subprocess.run(
        [*command, "--message", "你好"], capture_output=True, text=True, encoding="utf-8", timeout=120
    )
    assert result.returncode == 0
    lines = result.stderr.splitlines()
    assert [line.partition(" ")[0] for line in lines] == ["loading", "warning:"]
    assert lines[1].startswith("warning: int8 needs the CPU, a C compiler, ")
    assert ".py:" not in result.stderr


def test_with_one_row_no_reply_depends_on_other_requests_in_bf16(folder, dialogues):
    app = create_app(Chatbot.from_pretrained(folder, dtype="bfloat16"), ServeOptions(max_rows=1))
    with TestClient(app):
        (worker,) = app.state.workers.values()
        assert worker.max_rows == 1
        messages = [turns[0] for turns in dialogues[:12]]
        settings = {"max_reply_tokens": 24, "thinking": "off"}
        alone = [worker.bot.respond([message], seed, **settings) for seed, message in enumerate(messages)]
        arrived = [[] for _ in messages]
        for seed, message in enumerate(messages):
            worker.submit(worker.bot.request([message], seed, **settings), arrived[seed].append)
        worker.close(60)
    assert [items[-2].token_ids for items in arrived] == [reply.token_ids for reply in alone]
