"""The picture of replies on the page: the server's part."""

from __future__ import annotations

import json

import gradio as gr
import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.chat.variants import MAX_COORDINATE
from chatbot.chat.worker import MAX_ENCODED, Worker
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation.latent.picture import whitened_replies
from chatbot.safety import default_safety
from tests.chatbot.model.test_latent import latent_model
from tests.ui.page.test_page import chat_of
from ui.options import ServeOptions
from ui.page.actions import Actions
from ui.page.ball.actions import BallActions
from ui.page.ball.replies import has_ball, point_of
from ui.page.ball.text import BALL_TEXT
from ui.page.charts import trace_reply
from ui.page.chats import MAX_COORDINATES, ChatError, checked
from ui.page.feedback import rated_turns
from ui.page.handlers import PageSettings, answer
from ui.page.layout import Page

SETTINGS = ReplySettings(floor_start_tokens=12, floor_delta_tokens=4)


@pytest.fixture(scope="module")
def ball_bot(tokenizer) -> Chatbot:
    """A random model with a Gaussian latent, whose prior is the standard normal: z is the point itself."""
    model = latent_model(tokenizer, skips=2.0)
    for parameter in model.latent.prior_mlp[2].parameters():
        torch.nn.init.zeros_(parameter)
    return Chatbot(model, tokenizer, SETTINGS, name="varied")


@pytest.fixture
def ball_worker(ball_bot):
    worker = Worker(ball_bot)
    yield worker
    worker.close(0)


@pytest.fixture
def ball(ball_worker, tmp_path):
    return BallActions(Actions({"varied": ball_worker}, ServeOptions(data_dir=tmp_path), None))


@pytest.fixture
def chat(ball_worker):
    *_, (chat, _) = answer(ball_worker, chat_of(("user", "你好")), PageSettings(seed=3, temperature=0.9), "zh")
    return chat


def point(bot: Chatbot, *first: float) -> list[float]:
    return [*first, *[0.0] * (bot.model.latent.size - len(first))]


def test_the_same_point_gives_the_same_reply_and_the_origin_the_reply_without_z(ball, ball_bot, chat):
    here = [ball.reply_at(chat, point(ball_bot, 1.5, -2), None) for _ in range(2)]
    assert here[0] == here[1]
    assert here[0]["text"] == ball_bot.reply(["你好"], 3, temperature=0.9, point=point(ball_bot, 1.5, -2))
    assert here[0]["text"] != chat["messages"][-1]["text"]
    assert ball.reply_at(chat, point(ball_bot), None)["text"] == chat["messages"][-1]["text"]


def test_a_reply_at_a_point_can_be_rated_and_traced(ball, ball_bot, ball_worker, chat, tmp_path):
    message = ball.reply_at(chat, point(ball_bot, 1.5, -2), None)
    sent = {**message, "point": [int(x) if x.is_integer() else x for x in message["point"]]}  # as a browser writes it
    after = checked({**chat, "messages": [*chat["messages"][:-1], sent]})
    assert rated_turns(after, 1) == ["你好", message["text"]]
    ball.act.rate(after, gr.LikeData(None, {"index": 1, "value": "", "liked": True}), None)
    (line,) = map(json.loads, (tmp_path / "feedback.jsonl").read_text(encoding="utf-8").splitlines())
    assert (line["seed"], line["point"]) == (3, message["point"])
    with pytest.raises(ChatError):
        rated_turns({**after, "messages": [after["messages"][0], {**sent, "point": point(ball_bot, 1)}]}, 1)
    traced = trace_reply(lambda name: ball_worker, after, 1)
    ids = ball_bot.respond(["你好"], 3, temperature=0.9, point=message["point"]).token_ids
    assert [part.token for part in traced[: len(ids)]] == [ball_bot.tokenizer.decode([token]) for token in ids]


@pytest.mark.parametrize(
    "value", [None, 7, "0 0", {"0": 0}, [], [0.0], ["0"] * 6, [True] * 6, [float("nan")] * 6, [0] * 7, [[0]] * 6]
)
def test_a_point_is_as_many_numbers_as_the_latent_has_dimensions(ball, ball_bot, chat, value):
    assert ball_bot.model.latent.size == 6
    with pytest.raises(gr.Error, match="must be numbers"):
        ball.reply_at(chat, value, None)


def test_coordinates_from_a_browser_are_cut_to_the_range():
    assert point_of([1e17, -9, 0.12345], 3) == [MAX_COORDINATE, -MAX_COORDINATE, 0.123]


@pytest.mark.parametrize("value", [None, "你好", [], ["好"] * (MAX_ENCODED + 1), [7], ["好" * 100_000], [["好"]]])
def test_replies_from_a_browser_are_a_short_list_of_texts(ball, chat, value):
    with pytest.raises(gr.Error, match="not a conversation"):
        ball.encode(chat, value, None)


def test_points_in_a_stored_conversation_are_bounded():
    reply = {"role": "assistant", "text": "a", "seed": 1}
    for value in (None, 1, [], ["1"], [float("inf")], [0] * (MAX_COORDINATES + 1), {"0": 1}):
        assert "point" not in checked({"messages": [{**reply, "point": value}]})["messages"][0]
    assert checked({"messages": [{**reply, "point": [0, 1.5]}]})["messages"][0]["point"] == [0, 1.5]


def test_the_ellipses_of_the_page_are_those_of_the_report(ball, ball_bot, chat):
    texts = ["吃了", "还没有呢，你呢", chat["messages"][-1]["text"]]
    q = whitened_replies(ball_bot, ["你好"], texts)
    shown = ball.encode(chat, texts, None)
    assert [reply["text"] for reply in shown] == texts
    assert torch.allclose(torch.tensor([reply["m"] for reply in shown]), q.mean, atol=2e-3)
    assert torch.allclose(torch.tensor([reply["s"] for reply in shown]), q.deviation, atol=2e-3)


def test_replies_are_read_beside_replies_that_are_decoded(ball, ball_bot, ball_worker, chat):
    expected = ball.encode(chat, ["吃了", "好"], None)
    alone = ball_bot.reply(["在吗"], 5)
    stream = ball_worker.stream_replies(["在吗"], 5)
    next(stream)
    again = ball.encode(chat, ["吃了", "好"], None)
    for one, other in zip(again, expected, strict=True):  # beside another reply, rounding differs
        assert one["m"] == pytest.approx(other["m"], abs=2e-3)
        assert one["s"] == pytest.approx(other["s"], rel=1e-3)
    assert [reply.text for reply in stream][-1] == alone
    assert not ball_worker.batches or ball_worker.busy_rows <= 1


def test_a_given_reply_is_read_up_to_the_longest_reply_that_the_settings_allow(ball, ball_worker, chat, monkeypatch):
    read = []
    monkeypatch.setattr(ball_worker, "_queue", lambda job: (read.append(job.replies), job.deliver(None)))
    with pytest.raises(ValueError, match="not enough values"):
        ball_worker.encode(["你好"], ["好" * 300])
    assert [len(ids) for ids in read[0]] == [SETTINGS.limit_tokens]


def test_a_message_of_a_person_in_crisis_has_no_picture(ball, ball_bot, chat):
    assert ball_bot.safety is not None
    assert default_safety() is not None
    need = {**chat, "messages": [{"role": "user", "text": "我不想活了"}, chat["messages"][-1]]}
    for call in (lambda: ball.encode(need, ["好"], None), lambda: ball.reply_at(need, point(ball_bot), None)):
        with pytest.raises(gr.Error, match="not a complete reply"):
            call()


@pytest.mark.parametrize("kind", ["none", "discrete"])
def test_a_checkpoint_without_a_gaussian_latent_has_no_picture(bot, tokenizer, tmp_path, kind):
    other = bot if kind == "none" else Chatbot(latent_model(tokenizer, kind), tokenizer, SETTINGS, name="codes")
    worker = Worker(other)
    try:
        assert not has_ball(worker)
        asked = chat_of(("user", "你好"))
        *_, (chat, _) = answer(worker, asked, PageSettings(seed=3), "zh")
        act = BallActions(Actions({"a": worker}, ServeOptions(data_dir=tmp_path), None))
        for call in (lambda: act.encode(chat, ["好"], None), lambda: act.reply_at(chat, [0.0] * 6, None)):
            with pytest.raises(gr.Error, match="not a complete reply"):
                call()
        page = Page({"a": worker}, ServeOptions(data_dir=tmp_path), gr.I18n(), None)
        names = {function.api_name for function in page.blocks.fns.values()}
        assert "another" in names
        assert not {"encode", "reply_at"} & names
    finally:
        worker.close(0)


def test_both_languages_have_the_same_texts():
    assert BALL_TEXT["zh"].keys() == BALL_TEXT["en"].keys()
