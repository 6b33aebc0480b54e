"""DRY, XTC and top-n-sigma: their formulas, and that the bound, the seeds and the end of turn survive them."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from chatbot.chat.trace import trace
from chatbot.decoding.hf_generate import reply_processors
from chatbot.decoding.loop import decode, prefill
from chatbot.decoding.native_draw import can_draw
from chatbot.decoding.rules.repetition import MAX_DRY_NATS, Dry
from chatbot.decoding.rules.truncation import ConsistentTopNSigma, ConsistentXtc, drawn_from
from chatbot.decoding.settings import ReplySettings, ReplySettingsError
from tests.chatbot.decoding.generating import generated
from tests.chatbot.decoding.test_loop import EOS, HOSTILE, WORDS, V, run

RULES = {
    "dry": {"dry_multiplier": 0.8, "dry_allowed_length": 1},
    "dry, strong": {"dry_multiplier": 100, "dry_base": 100, "dry_allowed_length": 1},
    "xtc": {"xtc_probability": 0.5, "xtc_threshold": 0.1},
    "xtc, always": {"xtc_probability": 1.0, "xtc_threshold": 0.0, "top_p": 1.0},
    "top-n-sigma": {"top_n_sigma": 1.0},
    "top-n-sigma, narrow": {"top_n_sigma": 1e-6, "top_p": 1.0},
    "all": {"dry_multiplier": 2.0, "xtc_probability": 0.3, "xtc_threshold": 0.05, "top_n_sigma": 2.0, "min_p": 0.02},
}
TOKENS = st.lists(st.integers(0, 5), max_size=40)


def lost(rule: Dry, reply, earlier=()) -> dict[int, float]:
    logits = torch.zeros(1, V, dtype=torch.float64)
    rule.apply(logits, [reply], [earlier])
    return {token: -value for token, value in enumerate(logits[0].tolist()) if value}


def test_dry_is_its_formula():
    rule = Dry(0.8, 1.75, 2, EOS)
    assert lost(rule, [4, 5, 6, 4]) == {}  # one token that matches
    assert lost(rule, [4, 5, 6, 4, 5]) == pytest.approx({6: 0.8})
    assert lost(rule, [7, 4, 5, 6, 7, 4, 5]) == pytest.approx({6: 0.8 * 1.75})
    assert lost(rule, [4, 5], [[8, 4, 5, 9], [4, 5, EOS], [5, 6]]) == pytest.approx({9: 0.8})  # each text by itself
    assert lost(rule, [9, 4, 5], [[9, 4, 5, 6], [4, 5, 6]]) == pytest.approx({6: 0.8 * 1.75})  # the longest counts
    assert lost(rule, [4] * 6) == pytest.approx({4: 0.8 * 1.75**3})
    assert lost(rule, [4] * 2000) == pytest.approx({4: MAX_DRY_NATS})
    assert lost(rule, []) == {}


def slow_dry(reply, earlier, allowed: int) -> dict[int, int]:
    """The length of the longest repetition that each token would go on with, by comparing all substrings."""
    longest: dict[int, int] = {}
    for text in (reply, *earlier):
        for size in range(allowed, len(reply) + 1):
            for start in range(len(text) - size):
                if list(text[start : start + size]) == list(reply[len(reply) - size :]):
                    longest[text[start + size]] = max(size, longest.get(text[start + size], 0))
    return {token: size for token, size in longest.items() if token != EOS}


@given(TOKENS, st.lists(TOKENS, max_size=2), st.integers(1, 4))
def test_dry_finds_the_longest_repetition_and_spares_the_end(reply, earlier, allowed):
    losses = lost(Dry(1e-3, 1.25, allowed, EOS), reply, earlier)
    expected = {t: 1e-3 * 1.25 ** (size - allowed) for t, size in slow_dry(reply, earlier, allowed).items()}
    assert losses == pytest.approx(expected)


TOY = torch.tensor([[0.40, 0.05, 0.30, 0.15, 0.10]]).log()  # eos is id 1


@pytest.mark.parametrize(
    ("threshold", "remaining"),
    [(0.05, [4]), (0.12, [3, 4]), (0.2, [2, 3, 4]), (0.35, [0, 2, 3, 4]), (0.9, [0, 2, 3, 4])],
)
def test_xtc_keeps_the_least_likely_choice_and_the_probability_of_the_end(threshold, remaining):
    q = ConsistentXtc(1.0, threshold, 1, [0.5])(None, TOY).softmax(-1)[0]
    p = TOY.exp()[0]
    expected = torch.zeros(5)
    expected[remaining] = p[remaining] / p[remaining].sum() * 0.95
    expected[1] = 0.05
    torch.testing.assert_close(q, expected)


def test_xtc_without_the_end_kept_may_remove_it():
    q = ConsistentXtc(1.0, 0.04, None, [0.5])(None, TOY).softmax(-1)[0]
    assert q.tolist() == pytest.approx([0, 1, 0, 0, 0])  # the end is the least likely choice here
    q = ConsistentXtc(1.0, 0.12, None, [0.5])(None, TOY.flip(-1)).softmax(-1)[0]
    assert q.tolist() == pytest.approx([1 / 3, 1 / 2, 0, 1 / 6, 0])


def test_xtc_changes_the_rows_that_drew_a_small_number():
    rows = ConsistentXtc(0.3, 0.1, 1, [0.29, 0.31])(None, TOY.expand(2, -1))
    assert rows[0].softmax(-1)[0] == 0
    torch.testing.assert_close(rows[1], TOY[0])


@given(st.lists(st.floats(-12, 12), min_size=V, max_size=V), st.floats(0, 0.5), st.floats(0, 1))
def test_the_end_has_its_probability_with_xtc(values, threshold, draw):
    scores = torch.tensor([values], dtype=torch.float64)
    q = ConsistentXtc(0.5, threshold, EOS, [draw])(None, scores).softmax(-1)[0]
    assert q[EOS].item() == pytest.approx(scores.softmax(-1)[0, EOS].item(), rel=1e-9)
    assert q.isfinite().all()


@pytest.mark.parametrize(
    ("sigmas", "remaining"),
    [(0.2, [1, 3]), (0.7, [0, 1, 3]), (2.6, [0, 1, 3, 4])],
)
def test_top_n_sigma_is_its_formula(sigmas, remaining):
    """Logits 1, -2, 2, 0 without the forbidden one: mean 1/4, sigma 1.479; the end, id 1, is below 2 - 2.6 sigma."""
    scores = torch.tensor([[1.0, -2.0, -math.inf, 2.0, 0.0]])
    left = ConsistentTopNSigma(sigmas, 1)(None, scores)
    assert (left[0] > -math.inf).nonzero().flatten().tolist() == remaining
    assert (ConsistentTopNSigma(sigmas, 1)(None, scores / 7)[0] > -math.inf).equal(left[0] > -math.inf)
    without = ConsistentTopNSigma(sigmas, None)(None, scores)
    assert (without[0] > -math.inf).nonzero().flatten().tolist() == [token for token in remaining if token != 1]


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
@pytest.mark.parametrize("rule", RULES)
def test_every_reply_ends_within_the_bound(name, method, rule):
    settings = ReplySettings(method, floor_start_tokens=6, floor_delta_tokens=4, **RULES[rule])
    for draft in run(HOSTILE[name], settings, rows=40):
        assert len(draft.token_ids) <= settings.bound_tokens
        assert draft.stop_reason in ("eos", "floor", "limit")
        assert not math.isnan(draft.log_prob)


@pytest.mark.parametrize("rule", ["xtc", "xtc, always", "top-n-sigma", "top-n-sigma, narrow", "all"])
def test_the_tail_bound_of_sampling_holds(rule):
    t0, delta, rows = 4, 4, 600
    drafts = run(HOSTILE["no eos"], ReplySettings(floor_start_tokens=t0, floor_delta_tokens=delta, **RULES[rule]), rows)
    for m in range(1, 2 * delta):
        bound = 2 ** (-m * (m + 1) / 2 / delta)
        share = sum(len(draft.token_ids) > t0 + m for draft in drafts) / rows
        assert share <= bound + 3.5 * math.sqrt(bound * (1 - bound) / rows) + 1e-12


@given(
    st.lists(st.integers(-40, 40), min_size=V, max_size=V),
    st.floats(0.01, 4),
    st.floats(0, 0.5),
    st.floats(0, 1),
    st.floats(0.05, 1),
)
def test_no_truncation_loses_the_end_or_lowers_its_share(values, sigmas, threshold, probability, top_p):
    settings = ReplySettings(top_n_sigma=sigmas, xtc_probability=probability, xtc_threshold=threshold, top_p=top_p)
    scores = (torch.tensor([values], dtype=torch.float64) / 4).log_softmax(-1)
    share = drawn_from(scores, settings, EOS)[0, EOS].item()
    assert share >= scores.exp()[0, EOS].item() * (1 - 1e-9)


def test_dry_breaks_a_loop_that_greedy_decoding_never_leaves():
    plain = ReplySettings("greedy", floor_start_tokens=60)
    (before,) = run(HOSTILE["loop"], plain)
    assert (before.stop_reason, set(pairwise(before.token_ids))) == ("floor", {(5, 6), (6, 5)})
    (after,) = run(HOSTILE["loop"], plain.with_changes(dry_multiplier=5, dry_base=2))
    assert (after.stop_reason, len(after.token_ids)) == ("eos", 7)  # 5, 10, 20, 40: more than the 30 nats of the end


def test_a_batch_gives_each_row_what_it_gets_alone(bot, dialogues):
    settings = bot.settings.with_changes(**RULES["all"], temperature=1.3)
    prompts = [bot.layout.prompt([bot.tokenizer.encode(turn) for turn in turns[:3]], 200) for turns in dialogues[:8]]

    def answers(chosen, seeds):
        steps, logits = prefill(bot.model, chosen)
        speakers = [prompt.reply_speaker for prompt in chosen]
        *_, drafts = decode(steps, logits, speakers, settings, bot.vocabulary, seeds, [[[9, 8]]] * len(chosen))
        return [(draft.token_ids, draft.stop_reason) for draft in drafts]

    together = answers(prompts, range(8))
    assert together == [answers([prompt], [seed])[0] for seed, prompt in enumerate(prompts)]
    assert together == answers(prompts, range(8))
    assert together != answers(prompts, range(100, 108))


@pytest.mark.parametrize("rule", ["dry", "all"])
def test_generate_with_the_list_gives_our_own_reply(bot, dialogues, rule):
    for turns in dialogues[:4]:
        ours = bot.respond(turns[:3], seed=0, method="greedy", **RULES[rule])
        assert generated(bot, turns[:3], earlier=[1], **RULES[rule]) == list(ours.token_ids)


def test_in_the_list_sigma_is_first_and_xtc_is_last():
    names = [type(rule).__name__ for rule in reply_processors(ReplySettings(**RULES["all"]), WORDS, 3)]
    assert names[1:2] == ["RepetitionProcessor"]
    assert names[-4:] == ["ConsistentTopNSigma", "ConsistentTopP", "ConsistentMinP", "ConsistentXtc"]


def test_the_compiled_draw_leaves_truncation_to_torch_and_has_dry():
    """DRY changes the logits before either draw."""
    logits = torch.zeros(1, V)
    assert not can_draw(logits, ReplySettings(**RULES["xtc"]))
    assert not can_draw(logits, ReplySettings(**RULES["top-n-sigma"]))
    assert can_draw(logits, ReplySettings(**RULES["dry"])) == can_draw(logits, ReplySettings())


def test_the_traced_probabilities_are_those_before_xtc_draws(bot):
    changes = {"xtc_probability": 0.5, "xtc_threshold": 0.01, "temperature": 1.5}
    request = bot.request(["你好"], seed=3, **changes)
    steps = [step for step in trace(bot, request) if step is not None]
    assert all(0 < step.probability <= 1 for step in steps)
    assert sum(p for _, p in steps[0].likeliest) <= 1 + 1e-6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"xtc_probability": 1.1}, "xtc_probability must be between 0 and 1"),
        ({"xtc_threshold": -0.1}, "xtc_threshold must be between 0 and 1"),
        ({"dry_base": 0.9}, "dry_base must be between 1 and 100"),
        ({"dry_allowed_length": 0}, "dry_allowed_length must be at least 1"),
        ({"top_n_sigma": -1}, "top_n_sigma must be between 0 and 100"),
    ],
)
def test_what_cannot_be_used_is_refused(changes, words):
    with pytest.raises(ReplySettingsError, match=words):
        ReplySettings(**changes)
