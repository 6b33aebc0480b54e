"""The rules against repetition, and the truncation rules beside nucleus: what they keep, and that EOS is never touched."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import MinPLogitsWarper, TypicalLogitsWarper

from chatbot.decoding.hf_generate import RepetitionProcessor, reply_processors
from chatbot.decoding.rules.repetition import RepetitionRules
from chatbot.decoding.rules.truncation import ConsistentMinP, ConsistentTypical
from chatbot.decoding.settings import ReplySettings
from tests.chatbot.decoding.generating import generated
from tests.chatbot.decoding.test_loop import EOS, HOSTILE, WORDS, V, run

TOKENS = st.lists(st.integers(0, V - 1), max_size=30)


def ruled(rules: RepetitionRules, reply, earlier=()) -> torch.Tensor:
    logits = torch.linspace(-3, 3, V)[None].clone()
    rules.apply(logits, [reply], [earlier])
    return logits[0]


def test_the_penalty_divides_positive_logits_and_multiplies_negative_ones():
    before = torch.linspace(-3, 3, V)
    after = ruled(RepetitionRules(2.0, 0, EOS), [0, 19, 19, EOS], [[1], [18, EOS]])
    expected = before.clone()
    expected[[0, 1]] *= 2
    expected[[18, 19]] /= 2
    torch.testing.assert_close(after, expected)


def test_no_ngram_is_completed_a_second_time():
    rules = RepetitionRules(1.0, 3, EOS)
    banned = (ruled(rules, [4, 5, 6, 4, 5], [[9, 4, 5, 7], [4, 5, EOS], [5, 8]]) == -math.inf).nonzero().flatten()
    assert banned.tolist() == [6, 7]
    assert not (ruled(rules, [4], [[4, 5, 6]]) == -math.inf).any()  # too short to have two tokens before
    first = RepetitionRules(1.0, 1, EOS)
    assert (ruled(first, [], [[4, 5]]) == -math.inf).nonzero().flatten().tolist() == [4, 5]


@given(TOKENS, st.lists(TOKENS, max_size=3), st.floats(1, 5), st.integers(0, 4))
def test_the_end_is_never_touched(reply, earlier, penalty, ngram):
    before = torch.linspace(-3, 3, V)
    assert ruled(RepetitionRules(penalty, ngram, EOS), reply, earlier)[EOS] == before[EOS]


@given(TOKENS, st.lists(TOKENS, max_size=2), st.integers(1, 4))
def test_no_reply_repeats_an_ngram(reply, earlier, ngram):
    """Adding any token that is left never makes an n-gram that has been said."""
    left = (ruled(RepetitionRules(1.0, ngram, EOS), reply, earlier) > -math.inf).nonzero().flatten().tolist()
    seen = {tuple(text[at : at + ngram]) for text in (reply, *earlier) for at in range(len(text) - ngram + 1)}
    for token in left:
        new = tuple([*reply, token][-ngram:])
        assert len(new) < ngram or new not in seen or token == EOS


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", ["greedy", "sample"])
def test_the_bound_holds_with_all_rules_on(name, method):
    t0, delta = 6, 4
    settings = ReplySettings(
        method=method,
        floor_start_tokens=t0,
        floor_delta_tokens=delta,
        repetition_penalty=1.5,
        no_repeat_ngram=2,
        min_p=0.05,
        typical_p=0.9,
    )
    for draft in run(HOSTILE[name], settings, rows=50):
        most = t0 + delta + 1 if method == "greedy" else t0 + 2 * delta
        assert len(draft.token_ids) <= most
        assert draft.stop_reason in ("eos", "floor", "limit")
        pairs = list(zip(draft.token_ids, draft.token_ids[1:], strict=False))
        assert len(set(pairs)) == len(pairs)


def test_where_all_has_been_said_and_it_is_too_early_to_end_something_is_said_again():
    settings = ReplySettings(method="greedy", no_repeat_ngram=1, min_reply_tokens=40, floor_start_tokens=40)
    (draft,) = run(HOSTILE["uniform"], settings)
    assert len(draft.token_ids) >= 40
    assert sorted(draft.token_ids[: V - 3]) == list(range(3, V))  # first all others, each once


def test_the_last_replies_are_not_said_again(bot, dialogues):
    history = dialogues[0][:2]
    first_reply = bot.respond(history[:1], seed=1, method="greedy").text
    turns = [history[0], first_reply, history[0]]
    plain = bot.respond(turns, seed=1, method="greedy")
    other = bot.respond(turns, seed=1, method="greedy", no_repeat_ngram=2)
    before = bot.tokenizer.encode(first_reply)
    pairs = {tuple(before[at : at + 2]) for at in range(len(before) - 1)}
    new_pairs = list(zip(other.token_ids, other.token_ids[1:], strict=False))
    assert not pairs & set(new_pairs)
    assert len(set(new_pairs)) == len(new_pairs)
    assert plain.token_ids != other.token_ids


@pytest.mark.parametrize("changes", [{"repetition_penalty": 1.3}, {"no_repeat_ngram": 2}])
def test_generate_with_the_list_gives_our_own_reply(bot, dialogues, changes):
    for turns in dialogues[:6]:
        ours = bot.respond(turns[:3], seed=0, method="greedy", **changes)
        assert generated(bot, turns[:3], earlier=[1], **changes) == list(ours.token_ids)


def test_the_prompt_is_not_counted():
    rules = RepetitionProcessor(RepetitionRules(1.0, 1, EOS), prompt_tokens=3)
    scores = rules(torch.tensor([[4, 5, 6, 7], [4, 5, 6, 8]]), torch.zeros(2, V))
    assert (scores == -math.inf).nonzero().tolist() == [[0, 7], [1, 8]]


# --- min-p and typical ---

TOY = torch.tensor([[0.45, 0.02, 0.08, 0.30, 0.15]]).log()  # eos is id 1; its entropy is 1.298 nats


@pytest.mark.parametrize(
    ("rule", "remaining"),
    [
        (ConsistentMinP(0.2, 1), [0, 1, 3, 4]),
        (ConsistentMinP(0.2, None), [0, 3, 4]),
        (ConsistentMinP(1.0, 1), [0, 1]),
        (ConsistentTypical(0.25, 1), [1, 3]),  # -log .30 = 1.204 is nearest to the entropy
        (ConsistentTypical(0.31, None), [0, 3]),  # then -log .45 = .799
        (ConsistentTypical(0.76, 1), [0, 1, 3, 4]),
        (ConsistentTypical(0.91, None), [0, 2, 3, 4]),
    ],
)
def test_what_they_keep_is_in_proportion(rule, remaining):
    p, q = TOY.exp()[0], rule(None, TOY).softmax(-1)[0]
    expected = torch.zeros(5)
    expected[remaining] = p[remaining] / p[remaining].sum()
    torch.testing.assert_close(q, expected, rtol=1e-6, atol=1e-6)


@given(st.lists(st.integers(-512, 512), min_size=V, max_size=V, unique=True), st.floats(0.05, 0.95))
def test_without_eos_they_are_those_of_transformers(values, share):
    scores = torch.tensor([values]) / 64.0  # no two equal in fp32: transformers keeps all of equal ones
    ours = ConsistentMinP(share, None)(None, scores.clone())
    assert (ours > -math.inf).equal(MinPLogitsWarper(share)(None, scores.clone()) > -math.inf)
    ours = ConsistentTypical(share, None)(None, scores.clone())
    theirs = TypicalLogitsWarper(share)(None, scores.clone())
    assert abs(int((ours > -math.inf).sum()) - int((theirs > -math.inf).sum())) <= 1  # where a sum meets the share


def test_they_stand_at_the_end_of_the_list_and_only_when_sampling():
    settings = ReplySettings(min_p=0.1, typical_p=0.9, repetition_penalty=1.2, no_repeat_ngram=3)
    names = [type(rule).__name__ for rule in reply_processors(settings, WORDS, 3)]
    assert names[1] == "RepetitionProcessor"
    assert names[-3:] == ["ConsistentTopP", "ConsistentTypical", "ConsistentMinP"]
    greedy = [type(rule).__name__ for rule in reply_processors(settings.with_changes(method="greedy"), WORDS, 3)]
    assert greedy[-1] == "EosFloorProcessor"


def test_a_finite_cost_is_paid_for_each_time():
    before = torch.linspace(-3, 3, V)
    after = ruled(RepetitionRules(1.0, 2, EOS, cost=1.5), [4, 5, 4, 5, 6, 4], [[4, 6], [4, EOS]])
    expected = before.clone()
    expected[5] -= 3.0
    expected[6] -= 1.5
    torch.testing.assert_close(after, expected)
