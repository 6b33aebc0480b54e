"""How long the replies of a chat model of another project may be, and what a request can ask for."""

from __future__ import annotations

import json

import pytest
from fastapi.testclient import TestClient

from chatbot import Chatbot
from chatbot.cli import chat
from chatbot.decoding.settings import ReplySettings, ReplySettingsError, settings_from
from tests.chat_models import write_chat_model
from ui.options import ServeOptions
from ui.server.app import create_app


@pytest.fixture(scope="module")
def folder(dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("long") / "model"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], max_position_embeddings=4096)
    return folder


@pytest.fixture(scope="module")
def load(folder):
    """Function that loads the folder with this generation_config.json."""

    def load(**generation) -> Chatbot:
        (folder / "generation_config.json").write_text(json.dumps({"do_sample": True, **generation}))
        return Chatbot.from_pretrained(folder)

    return load


@pytest.fixture(scope="module")
def bot(load) -> Chatbot:
    return load()


def endless(bot: Chatbot) -> dict[int, float]:
    """Biases with which the model itself never ends a reply."""
    return {bot.vocabulary.end_id: -100}


@pytest.mark.parametrize(
    ("generation", "floor", "limit"),
    [
        ({}, (512, 128), 768),
        ({"max_new_tokens": 300}, (512, 128), 300),
        ({"max_new_tokens": 1000}, (1000, 128), 1000),
        ({"max_new_tokens": 10**6}, (1792, 128), 2048),  # half of the model's positions
        ({"max_reply_tokens": 10, "max_new_tokens": 300}, (512, 128), 10),
        ({"floor_start_tokens": 20}, (20, 32), 84),  # written by this project's training
        ({"floor_delta_tokens": 5, "max_new_tokens": 300}, (64, 5), 74),
    ],
)
def test_the_bound_of_a_folder(load, generation, floor, limit):
    settings = load(**generation).settings
    assert (settings.floor_start_tokens, settings.floor_delta_tokens) == floor
    assert settings.limit_tokens == limit


@pytest.mark.parametrize("stored", [0, "many", 2.5, True])
def test_a_limit_that_is_no_number_of_tokens_is_refused(load, stored):
    with pytest.raises(ReplySettingsError, match="max_new_tokens must be a whole number of at least 1"):
        load(max_new_tokens=stored)


def test_a_short_model_keeps_half_of_its_positions_for_the_history(dialogues, tmp_path):
    write_chat_model(tmp_path / "short", dialogues[0], max_position_embeddings=512)
    bot = Chatbot.from_pretrained(tmp_path / "short")
    assert bot.settings.floor_start_tokens + 2 * bot.settings.floor_delta_tokens == bot.settings.limit_tokens == 256
    assert bot.respond(["你好"], 1, max_reply_tokens=4000, logit_bias=endless(bot)).generated_tokens <= 256


@pytest.mark.parametrize(("asked", "tokens"), [(20, 20), (500, 500), (900, 900)])
def test_a_reply_is_as_long_as_was_asked_for(bot, asked, tokens, capsys):
    reply = bot.respond(["你好"], 1, max_reply_tokens=asked, logit_bias=endless(bot))
    assert (len(reply.token_ids), reply.stop_reason) == (tokens, "limit")


def test_no_request_gets_more_than_the_bound_of_the_server(bot):
    settings = bot.within_limits(bot.settings.with_changes(max_reply_tokens=10**6))
    assert settings.floor_start_tokens == bot.context_tokens == 1024
    assert settings.limit_tokens == 1024 + 2 * 128


def test_the_api_and_the_terminal_give_what_was_asked_for(bot, folder, capsys):
    app = create_app(bot, ServeOptions())
    fields = {"messages": [{"role": "user", "content": "你好"}], "seed": 1}
    with TestClient(app, base_url="http://localhost") as client:

        def ask(**more) -> tuple[int, str]:
            body = client.post("/v1/chat/completions", json={**fields, **more}).json()
            return body["usage"]["completion_tokens"], body["choices"][0]["finish_reason"]

        bias = {str(bot.vocabulary.end_id): -100}
        assert ask(max_tokens=500, logit_bias=bias) == (500, "length")
        tokens, reason = ask(logit_bias=bias)  # the floor ends it, which is a bound on the length as well
        assert (512 < tokens <= 769, reason) == (True, "length")
    chat(["--checkpoint", str(folder), "--seed", "1", "--json", "--max-reply-tokens", "600", "--message", "你好"])
    expected = bot.respond(["你好"], 1, max_reply_tokens=600)
    assert json.loads(capsys.readouterr().out)["text"] == expected.text


def test_a_floor_that_a_checkpoint_records_stays():
    settings = ReplySettings(floor_start_tokens=12, floor_delta_tokens=4)
    assert settings.with_changes(max_reply_tokens=500).limit_tokens == 20
    raised = settings.with_changes(floor_max_start_tokens=100)
    assert raised.with_changes(max_reply_tokens=500).floor_start_tokens == 100
    assert raised.with_changes(max_reply_tokens=50).floor_start_tokens == 50
    assert raised.with_changes(max_reply_tokens=5).floor_start_tokens == 12
    assert raised.with_changes(max_reply_tokens=50, floor_start_tokens=3).floor_start_tokens == 3
    with pytest.raises(ReplySettingsError, match="at most 4096"):
        settings_from({"floor_max_start_tokens": 5000})


@pytest.mark.parametrize(
    ("generation", "method"),
    [
        ({"do_sample": False}, "greedy"),
        ({"do_sample": True}, "sample"),
        ({}, "sample"),
        ({"do_sample": False, "method": "sample"}, "sample"),
        ({"do_sample": False, "method": "beam"}, "beam"),
    ],
)
def test_do_sample_of_a_folder_is_kept(generation, method):
    assert settings_from(generation).method == method
