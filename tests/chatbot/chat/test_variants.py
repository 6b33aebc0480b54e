"""Other ways to say a reply: the same for a seed everywhere, different from each other."""

from __future__ import annotations

import pytest

from chatbot.chat.bot import Chatbot
from chatbot.chat.session import ChatSession
from chatbot.chat.variants import MAX_VARIATION, POOL, candidate_settings, choose_variant
from chatbot.chat.worker import Worker
from chatbot.decoding.batch import make_native
from chatbot.decoding.candidates import Draft
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import ReplySettingsError
from chatbot.text.dialogue import DialogueError
from tests.chatbot.model.test_latent import latent_model

TURNS = ["你好", "你好呀", "今天怎么样"]
SETTINGS = ReplySettings(floor_start_tokens=12, floor_delta_tokens=4)


@pytest.fixture(params=["no latent", "gaussian", "discrete", "compiled"])
def varied(request, bot, tokenizer) -> Chatbot:
    """A bot without a latent, with one, and with one in the compiled library."""
    if request.param == "no latent":
        return bot
    model = latent_model(tokenizer, "discrete" if request.param == "discrete" else "gaussian", skips=2.0)
    if request.param == "compiled" and not make_native(model):
        pytest.skip("no C compiler")
    return Chatbot(model, tokenizer, SETTINGS)


def test_variants_differ_and_are_the_same_alone_and_in_the_worker(varied):
    variants = [varied.respond(TURNS, 3, variation=number) for number in range(4)]
    assert variants[0].token_ids == varied.respond(TURNS, 3).token_ids
    assert len({reply.token_ids for reply in variants}) == 4
    assert varied.respond(TURNS, 4, variation=1).token_ids != variants[1].token_ids
    varied.snapshots.clear()
    worker = Worker(varied)
    try:
        streams = [worker.stream_replies(TURNS, 3, variation=number) for number in (2, 0, 3, 1)]
        again = [list(stream)[-1] for stream in streams]
    finally:
        worker.close()
    assert [reply.token_ids for reply in again] == [variants[number].token_ids for number in (2, 0, 3, 1)]
    assert varied.respond(TURNS, 3).token_ids == variants[0].token_ids  # no snapshot has read a z


def test_the_state_after_a_variant_is_that_of_its_text(tokenizer):
    bot = Chatbot(latent_model(tokenizer, skips=2.0), tokenizer, SETTINGS)
    session = ChatSession(bot)
    session.reply("你好", 1)
    session.another()
    following = bot.reply([*session.turns, "再见"], 5)
    bot.snapshots.clear()
    assert bot.reply([*session.turns, "再见"], 5) == following


def test_a_session_walks_through_the_variants(bot):
    session = ChatSession(bot)
    with pytest.raises(DialogueError, match="nothing to say in another way"):
        session.another()
    texts = [session.reply("你好", 1), session.another(), session.another()]
    assert texts == [bot.reply(["你好"], 1, variation=number) for number in range(3)]
    assert session.turns == ["你好", texts[2]]
    assert session.last_reply.seed == 1
    session.retry(7)
    assert session.another(spread=0.0) == bot.reply(["你好"], 7, variation=1, spread=0.0)


def test_the_spread_is_the_place_in_the_order_of_the_distances(bot):
    """Candidates by their share of common tokens with the reply shown; the worst half by log p is left out."""
    drafts = [Draft([1, 2, 3, 4], -1.0, "eos"), Draft([1, 2, 3, 5], -1.0, "eos"), Draft([1, 2, 6, 7], -1.0, "eos")]
    drafts += [Draft([8, 9, 10, 11], -1.1, "eos"), Draft([1, 12, 13, 14], -1.0, "eos")]
    drafts += [Draft([20 + number] * 4, -90.0, "eos") for number in range(3)]
    drafts += [drafts[0]] * (POOL - len(drafts))
    ranker = bot.ranker(bot.settings)

    def chosen(variation: int, spread: float) -> list[int]:
        request = bot.request(["你好"], 1, variation=variation, spread=spread)
        assert request.candidates == POOL * (1 + (variation - 1) // 2)
        return choose_variant(ranker, request, drafts).token_ids

    assert chosen(1, 0.0) == [1, 2, 3, 5]
    assert chosen(2, 0.0) == [1, 2, 6, 7]
    assert chosen(1, 2.0) == chosen(1, 1.0)
    assert set(chosen(1, 1.0)) & {1, 2, 3, 4} == set()
    assert chosen(2, 1.0) != chosen(1, 1.0)


def test_later_candidates_are_sampled_at_higher_temperatures(bot):
    request = bot.request(["你好"], 1, variation=1, spread=0.5, temperature=0.8)
    heats = [settings.temperature for settings in candidate_settings(request)]
    assert heats == pytest.approx([0.8] * 4 + [0.9] * 4 + [1.0] * 4)
    assert {settings.temperature for settings in candidate_settings(bot.request(["你好"], 1, candidates=3))} == {0.7}
    near = bot.request(["你好"], 1, variation=1, spread=0.0, candidates=20)
    assert candidate_settings(near) == [near.settings] * 20


def test_equal_candidates_still_give_a_reply(bot):
    drafts = [Draft([1, 2], -1.0, "eos") for _ in range(POOL)]
    request = bot.request(["你好"], 1, variation=2)
    assert choose_variant(bot.ranker(bot.settings), request, drafts).token_ids == [1, 2]


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"variation": MAX_VARIATION + 1}, f"from 0 to {MAX_VARIATION}, got 9"),
        ({"variation": -1}, "got -1"),
        ({"variation": 1.0}, "got 1.0"),
        ({"variation": True}, "got True"),
        ({"spread": 2.1}, r"from 0 to 2\.0, got 2\.1"),
        ({"spread": float("nan")}, "got nan"),
        ({"variation": 1, "method": "greedy"}, "remove variation or method greedy"),
    ],
)
def test_variations_that_cannot_be_are_refused(bot, changes, fault):
    with pytest.raises(ReplySettingsError, match=fault):
        bot.reply(TURNS, 1, **changes)


@pytest.mark.parametrize(
    ("changes", "fault"),
    [
        ({"point": [0.0] * 5}, r"6 numbers from -4\.0 to 4\.0"),
        ({"point": [4.1] + [0.0] * 5}, "6 numbers"),
        ({"point": [float("nan")] + [0.0] * 5}, "6 numbers"),
        ({"point": [True] * 6}, "6 numbers"),
        ({"point": ["0"] * 6}, "6 numbers"),
        ({"point": 0.0}, "6 numbers"),
        ({"point": [0.0] * 6, "variation": 1}, "remove variation"),
        ({"point": [0.0] * 6, "method": "beam"}, "method beam"),
    ],
)
def test_points_that_cannot_be_are_refused(tokenizer, changes, fault):
    bot = Chatbot(latent_model(tokenizer), tokenizer, SETTINGS)
    with pytest.raises(ReplySettingsError, match=fault):
        bot.reply(TURNS, 1, **changes)


def test_a_point_needs_a_gaussian_latent(bot, tokenizer):
    for other in (bot, Chatbot(latent_model(tokenizer, "discrete"), tokenizer, SETTINGS)):
        with pytest.raises(ReplySettingsError, match="Gaussian latent variable: remove point"):
            other.reply(TURNS, 1, point=[0.0] * 6)


@pytest.mark.parametrize("kind", ["torch", "compiled"])
def test_a_reply_at_a_point_is_the_same_alone_and_in_the_worker(tokenizer, kind):
    model = latent_model(tokenizer, skips=2.0)
    if kind == "compiled" and not make_native(model):
        pytest.skip("no C compiler")
    bot = Chatbot(model, tokenizer, SETTINGS)
    points = [[x] * 6 for x in (0.0, 1.5, -1.5)]
    alone = [bot.respond(TURNS, 3, point=at).token_ids for at in points]
    assert len(set(alone)) == 3
    assert alone[0] == bot.respond(TURNS, 3, variation=1, spread=0.0).token_ids  # the mean of the prior
    plain = bot.respond(TURNS, 3).token_ids
    bot.snapshots.clear()
    worker = Worker(bot)
    try:
        streams = [worker.stream_replies(TURNS, 3, point=at) for at in points]
        assert [list(stream)[-1].token_ids for stream in streams] == alone
    finally:
        worker.close()
    assert bot.respond(TURNS, 3).token_ids == plain  # no snapshot has read a z


def test_the_last_variant_says_that_it_is_the_last(bot):
    session = ChatSession(bot)
    session.reply("你好", 1)
    session.variation = MAX_VARIATION
    with pytest.raises(ReplySettingsError, match="from 0 to 8, got 9"):
        session.another()


def test_a_variant_is_traced_with_its_z(tokenizer):
    from chatbot.chat.trace import trace

    bot = Chatbot(latent_model(tokenizer, skips=2.0), tokenizer, SETTINGS)
    reply = bot.respond(["你好"], 1, variation=1)
    steps = [step for step in trace(bot, bot.request(["你好"], 1, variation=1)) if step is not None]
    ids = reply.token_ids
    assert [step.token for step in steps[: len(ids)]] == [bot.tokenizer.decode([token]) for token in ids]
    assert all(step.probability > 0 for step in steps)
