"""Thinking blocks of chat models: hidden or shown, in streams, in the API and in the terminal."""

from __future__ import annotations

import itertools
import json

import pytest
from transformers import AutoTokenizer

from chatbot import Chatbot, ChatSession
from chatbot.chat.worker import Worker
from chatbot.cli import chat
from chatbot.decoding.rules.thinking import split_thinking
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import ReplySettingsError
from chatbot.evaluation.answering import Context, answer_all
from chatbot.evaluation.cache import ResultCache
from tests.chat_models import CHATML, OPENED, THINKING, write_chat_model

MESSAGES = [{"role": "user", "content": "你好呀！"}]


@pytest.fixture(scope="module")
def folder(dialogues, tmp_path_factory):
    folder = tmp_path_factory.mktemp("thinking") / "qwen3"
    write_chat_model(folder, [turn for turns in dialogues for turn in turns], "qwen3")
    return folder


def with_template(folder, template: str) -> Chatbot:
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps({**settings, "chat_template": template}, ensure_ascii=False), encoding="utf-8")
    return Chatbot.from_pretrained(folder)


@pytest.fixture
def bot(folder) -> Chatbot:
    """A bot whose template has the switch, forced to begin with a thinking block of at most six tokens."""
    bot = with_template(folder, THINKING)
    forced = ((bot.tokenizer.id_of("<think>"), 100.0),)
    bot.settings = bot.settings.with_changes(logit_bias=forced, thinking_tokens=6, max_reply_tokens=8)
    return bot


def test_prompts_are_those_of_the_template(folder):
    for template, switch in ((THINKING, True), (CHATML, False)):
        bot = with_template(folder, template)
        assert bot.settings.thinking == ("off" if switch else "plain")
        theirs = AutoTokenizer.from_pretrained(folder)
        history = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False)
        for thinking, more in (
            ("plain", {}),
            ("off", {"enable_thinking": False}),
            ("shown", {"enable_thinking": True}),
        ):
            expected = theirs.apply_chat_template(MESSAGES, add_generation_prompt=True, return_dict=False, **more)
            request = bot.request(["你好呀！"], 0, thinking=thinking)
            assert request.prompt.input_ids == expected
            assert (expected != history) == (switch and thinking == "off")


def test_a_model_that_was_trained_here_is_asked_as_in_its_training(folder, tmp_path):
    bot = with_template(folder, THINKING)
    assert bot.settings.thinking == "off"
    (folder / "training.json").write_text("{}")
    try:
        assert Chatbot.from_pretrained(folder).settings.thinking == "plain"
    finally:
        (folder / "training.json").unlink()


def test_thoughts_are_hidden_or_shown_and_every_reply_ends(bot):
    tokenizer = bot.tokenizer
    tags = [tokenizer.id_of("<think>"), tokenizer.id_of("</think>")]
    for seed in range(8):
        shown = bot.respond(["你好"], seed, thinking="shown")
        hidden = bot.respond(["你好"], seed, thinking="hidden")
        assert shown.token_ids == hidden.token_ids
        assert (hidden.text, hidden.thoughts) == (shown.text, "")
        assert shown.token_ids[0] == tags[0]
        close = shown.token_ids.index(tags[1])
        assert close <= 7
        assert shown.thoughts == tokenizer.decode_complete(shown.token_ids[1:close]).strip()
        assert shown.text == tokenizer.decode_complete(shown.token_ids[close + 1 :]).strip()
        assert len(shown.token_ids) - close - 1 <= 8
        assert shown.stop_reason in ("eos", "floor", "limit")
    plain = bot.respond(["你好"], 0, thinking="off")
    assert not set(tags) & set(plain.token_ids)


def test_a_block_is_closed_after_its_budget_and_the_answer_has_its_own_length(bot):
    close = bot.tokenizer.id_of("</think>")
    lengths = set()
    for seed in range(6):
        ids = bot.respond(
            ["你好"],
            seed,
            thinking="shown",
            thinking_tokens=3,
            logit_bias={**dict(bot.settings.logit_bias), close: -100.0, bot.vocabulary.end_id: -100.0},
        ).token_ids
        assert ids.index(close) == 4  # the tag, three tokens
        lengths.add(len(ids) - 5)
    assert lengths == {8}


def test_streams_only_grow_and_history_has_answers_alone(bot):
    session = ChatSession(bot, thinking="shown")
    pieces = list(session.stream("你好", 3))
    assert all(after.startswith(before) for before, after in itertools.pairwise(pieces))
    replies = list(bot.stream_replies(["你好"], 3, thinking="shown"))
    thoughts = [reply.thoughts for reply in replies]
    assert all(after.startswith(before) for before, after in itertools.pairwise(thoughts))
    assert thoughts[-1]
    assert not any("<" in text and "think" in text for text in [*thoughts, *pieces])
    assert session.turns == ["你好", replies[-1].text]


def test_a_worker_gives_the_same_reply(bot):
    expected = [bot.respond(["你好"], seed, thinking="shown") for seed in range(4)]
    worker = Worker(bot)
    try:
        for seed, reply in enumerate(expected):
            *_, got = worker.stream_replies(["你好"], seed, thinking="shown")
            assert (got.text, got.thoughts, got.token_ids) == (reply.text, reply.thoughts, reply.token_ids)
    finally:
        worker.close()


def test_a_template_that_opens_the_block(folder):
    bot = with_template(folder, OPENED)
    assert bot.settings.thinking == "plain"  # as in the history
    bot.settings = bot.settings.with_changes(thinking_tokens=5, max_reply_tokens=6)
    assert bot.vocabulary.thinking.is_opened
    close = bot.tokenizer.id_of("</think>")
    for seed in range(4):
        reply = bot.respond(["你好"], seed, thinking="shown")
        assert reply.token_ids.index(close) <= 5
        assert reply.thoughts + reply.text


@pytest.mark.parametrize(
    ("text", "is_opened", "expected"),
    [
        ("<think>甲乙</think>答", False, ("甲乙", "答")),
        ("\n<think>\n甲乙\n</think>\n\n答", False, ("甲乙", "答")),
        ("甲乙</think>答", True, ("甲乙", "答")),
        ("<think>甲", False, ("甲", "")),
        ("答", False, ("", "答")),
        ("<thin", False, ("", "<thin")),
        ("<b>答</b>", False, ("", "<b>答</b>")),
        ("", False, ("", "")),
    ],
)
def test_tags_are_taken_out_of_text_of_any_cut(text, is_opened, expected):
    assert split_thinking(text, is_opened, True) == expected
    cuts = [split_thinking(text[:end], is_opened, False) for end in range(len(text) + 1)]
    for part in (0, 1):
        seen = [cut[part] for cut in cuts]
        assert all(after.startswith(before) for before, after in itertools.pairwise([*seen, expected[part]]))
        assert not any("<th" in value or "</t" in value for value in seen)


def test_what_excludes_thinking_is_said(bot):
    for changes in ({"method": "beam"}, {"candidates": 2}, {"top_logprobs": 1}):
        with pytest.raises(ReplySettingsError, match="excludes beam search"):
            ReplySettings(thinking="hidden", **changes)
    with pytest.raises(ReplySettingsError, match="thinking must be 'plain', 'off', 'hidden' or 'shown'"):
        ReplySettings(thinking="loud")
    with pytest.raises(ReplySettingsError, match="no thinking block"):
        bot.request(["你好"], 0, variation=1, thinking="hidden")


def test_a_reply_with_its_block_fits_the_model(bot):
    settings = bot.within_limits(
        bot.settings.with_changes(thinking="hidden", thinking_tokens=500, max_reply_tokens=500)
    )
    assert bot.context_tokens + settings.thinking_tokens + 2 + settings.limit_tokens <= bot.model.max_tokens


def test_evaluation_rates_the_answer(bot, tmp_path):
    bot.settings = bot.settings.with_changes(thinking="hidden")
    answers, _ = answer_all(bot, [Context(("你好",), "好")], {"m": bot.settings}, 0, ResultCache(tmp_path))
    expected = bot.vocabulary.thinking.segment(bot.respond(["你好"], 0).token_ids)
    assert answers["m"][0].token_ids == expected
    assert bot.tokenizer.decode_complete(expected).strip() == bot.respond(["你好"], 0).text


def test_the_terminal_shows_thoughts_on_request(bot, capsys, folder):
    bot = with_template(folder, THINKING)
    (folder / "generation_config.json").write_text(json.dumps({"logit_bias": [[bot.tokenizer.id_of("<think>"), 100]]}))
    options = ["--checkpoint", str(folder), "--message", "你好", "--seed", "2", "--thinking-tokens", "6", "--json"]
    assert chat([*options, "--thinking", "shown"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert chat([*options, "--thinking", "hidden"]) == 0
    hidden = json.loads(capsys.readouterr().out)
    assert shown["thoughts"]
    assert "thoughts" not in hidden
    assert shown["text"] == hidden["text"]
