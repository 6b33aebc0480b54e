"""Penalties and biases: what they add to the logits, and that every reply still ends within its bound."""

from __future__ import annotations

import math

import pytest
import torch

from chatbot.decoding.hf_generate import reply_processors
from chatbot.decoding.rules.penalties import Penalties
from chatbot.decoding.settings import ReplySettings, ReplySettingsError
from tests.chatbot.decoding.test_loop import EOS, HOSTILE, V, run


def test_the_formula():
    logits = torch.zeros(2, V)
    Penalties(0.5, 0.25, ((4, 3.0), (7, -100.0))).apply(logits, [[4, 5, 5, 5], []])
    expected = torch.zeros(2, V)
    expected[:, 4], expected[:, 7] = 3.0, -100.0
    expected[0, 4] -= 0.5 + 0.25
    expected[0, 5] -= 0.5 + 3 * 0.25
    torch.testing.assert_close(logits, expected)


def test_what_is_forbidden_stays_forbidden():
    logits = torch.full((1, V), -math.inf)
    Penalties(-2, -2, ((4, 100.0),)).apply(logits, [[4, 5]])
    assert (logits == -math.inf).all()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
@pytest.mark.parametrize(
    "changes",
    [
        {"presence_penalty": -2, "frequency_penalty": -2},
        {"presence_penalty": 2, "frequency_penalty": 2},
        {"logit_bias": {EOS: -100, 5: 100}},
        {"logit_bias": {EOS: -100}, "frequency_penalty": -2, "min_reply_tokens": 3},
    ],
)
def test_every_reply_ends_within_the_bound(name, method, changes):
    t0, delta = 6, 4
    settings = ReplySettings(method, floor_start_tokens=t0, floor_delta_tokens=delta, **changes)
    for draft in run(HOSTILE[name], settings, rows=20):
        assert settings.min_reply_tokens <= len(draft.token_ids) <= settings.bound_tokens
        assert draft.stop_reason in ("eos", "floor", "limit")
        assert not math.isnan(draft.log_prob)


def test_a_bias_on_the_end_ends_the_reply_at_once():
    for draft in run(HOSTILE["uniform"], ReplySettings(logit_bias={EOS: 100}), rows=20):
        assert (len(draft.token_ids), draft.stop_reason) == (1, "eos")  # min_reply_tokens is 1


@pytest.mark.parametrize("rows", [1, 3])
def test_a_frequency_penalty_spreads_the_tokens(rows):
    plain = run(HOSTILE["loop"], ReplySettings("greedy"), rows=rows)
    spread = run(HOSTILE["loop"], ReplySettings("greedy", frequency_penalty=2), rows=rows)
    for before, after in zip(plain, spread, strict=True):
        most = max(map(before.token_ids.count, before.token_ids))
        assert max(map(after.token_ids.count, after.token_ids)) < most


@pytest.mark.parametrize("changes", [{"presence_penalty": 1.5}, {"frequency_penalty": 0.7, "logit_bias": {9: 2.0}}])
def test_generate_with_the_list_gives_our_own_reply(bot, dialogues, changes):
    settings = bot.settings.with_changes(method="greedy", **changes)
    for turns in dialogues[:4]:
        prompt = bot.layout.prompt(bot.encode_turns(turns[:1]), bot.context_tokens)
        ids = torch.tensor([prompt.input_ids])
        theirs = bot.model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            token_type_ids=torch.tensor([prompt.speaker_ids]),
            logits_processor=reply_processors(settings, bot.vocabulary, ids.shape[1]),
            do_sample=False,
            max_new_tokens=settings.limit_tokens + 1,
            eos_token_id=bot.vocabulary.end_id,
            pad_token_id=0,
        )
        ours = bot.respond(turns[:1], seed=0, method="greedy", **changes)
        assert theirs[0, ids.shape[1] : -1].tolist() == list(ours.token_ids)


def test_biases_are_stored_as_sorted_pairs():
    settings = ReplySettings(logit_bias={"9": 1, 4: -2.5})
    assert settings.logit_bias == ((4, -2.5), (9, 1.0))
    assert ReplySettings(logit_bias=[[9, 1], [4, -2.5]]) == settings
    assert hash(settings) == hash(ReplySettings(logit_bias=settings.logit_bias))


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"logit_bias": {5: 101}}, "token 5 must be between -100 and 100, got 101"),
        ({"logit_bias": {5: math.nan}}, "token 5 must be"),
        ({"logit_bias": {5: "1"}}, "token 5 must be"),
        ({"logit_bias": {-1: 1}}, "token -1 must be"),
        ({"logit_bias": {"你": 1}}, "must map token ids to numbers"),
        ({"logit_bias": 5}, "must map token ids to numbers"),
        ({"presence_penalty": 2.1}, "presence_penalty must be between -2 and 2"),
        ({"frequency_penalty": -3}, "frequency_penalty must be between -2 and 2"),
        ({"top_logprobs": 21}, "top_logprobs must be between 0 and 20"),
        ({"top_logprobs": 1, "method": "beam"}, "beam search records no log-probabilities"),
        ({"script": "hant"}, "script must be 'typed', 'simplified' or 'asker', got 'hant'"),
        ({"method": "best"}, "method must be 'sample', 'greedy' or 'beam', got 'best'"),
        ({"temperature": 0}, r"got 0 \(for 0, use method 'greedy'\)"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, words):
    with pytest.raises(ReplySettingsError, match=words):
        ReplySettings(**changes)
