"""Extreme settings and logits: every rule leaves a token that is allowed, in both samplers, for all rows of a batch."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from chatbot.decoding.native_draw import can_draw
from chatbot.decoding.rules.truncation import truncate
from chatbot.decoding.sampler import SampledReply, choose
from chatbot.decoding.settings import OPTIONS, ReplySettings
from tests.chatbot.decoding.test_loop import EOS, WORDS, V

NAMES = ("top_n_sigma", "top_k", "top_p", "typical_p", "min_p", "xtc_probability", "xtc_threshold")
RULES = {option.name: option for option in OPTIONS if option.name in NAMES}
SMALLEST = 5e-324


def extremes(name: str) -> st.SearchStrategy:
    """Values at the ends of a setting's range, and such as vanish in float32."""
    option = RULES[name]
    if option.kind is int:
        return st.sampled_from([0, 1, 2, V - 1, V, 10**6])
    values = {0.0, SMALLEST, 1e-300, 1e-46, 1e-38, 1e-8, 0.5, 1 - 2**-53, 1.0, option.maximum}
    return st.sampled_from(sorted(values - ({0.0} if name in ("top_p", "typical_p") else set())))


SETTINGS = st.fixed_dictionaries(
    {"temperature": st.sampled_from([0.01, 1.0, 100.0]), "min_reply_tokens": st.sampled_from([0, 1])},
    optional={**{name: extremes(name) for name in NAMES}, "keep_eos": st.booleans()},
)
LOGITS = st.lists(
    st.sampled_from([-math.inf, -3e38, -1e6, -104.0, -1.0, 0.0, 1e-45, 1.0, 88.0, 1e6, 3e38]), min_size=V, max_size=V
)
PLAIN = [0.0] * V


@given(SETTINGS, st.lists(LOGITS, min_size=1, max_size=3), st.sampled_from([0.0, 0.5, 1 - 2**-53]))
@example({"temperature": 1.0, "min_reply_tokens": 1, "typical_p": 1e-300, "top_p": 1.0}, [PLAIN, PLAIN], 0.0)
@example({"temperature": 0.01, "min_reply_tokens": 1, "top_p": SMALLEST}, [PLAIN], 0.5)
@example({"temperature": 0.01, "min_reply_tokens": 1, "top_k": 3}, [[3e38, -3e38, *PLAIN[2:]]], 0.5)
def test_every_rule_leaves_a_token_that_is_allowed(changes, rows, uniform):
    settings = ReplySettings(**changes)
    rows = [[*row[:5], 0.0, *row[6:]] for row in rows]  # a row without any allowed token is refused elsewhere
    logits = torch.tensor(rows)
    replies = [SampledReply(settings, SimpleNamespace(random=lambda: uniform)) for _ in rows]
    tokens = choose(logits, replies, WORDS)
    for token, row in zip(tokens, logits, strict=True):
        assert row[token] > -math.inf
        assert token != EOS or not settings.min_reply_tokens


@pytest.mark.parametrize("name", RULES)
@given(st.data())
def test_a_rule_alone_leaves_a_token(name, data):
    changes = {"top_p": 1.0, name: data.draw(extremes(name)), "keep_eos": data.draw(st.booleans())}
    if name == "xtc_threshold":
        changes["xtc_probability"] = 1.0
    scores = torch.tensor(data.draw(st.lists(LOGITS, min_size=1, max_size=3)))
    scores[:, 3], scores[:, EOS] = 0.0, -math.inf
    left = truncate(scores.log_softmax(-1), ReplySettings(**changes), EOS, [0.0] * len(scores))
    assert (left > -math.inf).any(-1).all()
    assert not left.isnan().any()


def test_the_compiled_sampler_draws_some_of_these_tokens():
    assert can_draw(torch.zeros(1, V), ReplySettings(top_p=SMALLEST))
    assert not can_draw(torch.zeros(1, V), ReplySettings(typical_p=SMALLEST))
