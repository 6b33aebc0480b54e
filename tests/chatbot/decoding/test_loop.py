"""Every reply ends, says why, and depends on its seed alone, also on models that want none of it."""

from __future__ import annotations

import math
import random
from collections import Counter

import pytest
import torch
from transformers import (
    LogitsProcessorList,
    SuppressTokensLogitsProcessor,
    TemperatureLogitsWarper,
    TopPLogitsWarper,
)

from chatbot.decoding.candidates import GenerationError
from chatbot.decoding.hf_generate import EosFloorProcessor, reply_processors
from chatbot.decoding.loop import decode, prefill
from chatbot.decoding.rules.eos_floor import EosFloor
from chatbot.decoding.rules.truncation import ConsistentTopK, ConsistentTopP
from chatbot.decoding.settings import ReplySettings, ReplySettingsError
from chatbot.decoding.vocabulary import Vocabulary
from tests.chatbot.decoding.generating import generated

V, EOS = 20, 2
WORDS = Vocabulary(EOS, (0, 1))


class Hostile:
    """A model whose next-token logits depend on the last token only."""

    def __init__(self, table: torch.Tensor):
        self.table = table  # [V, V]

    def __call__(self, ids, speakers):
        assert ids.shape == speakers.shape
        return self.table[ids]

    def select(self, rows):
        pass


def no_eos() -> torch.Tensor:
    table = torch.randn(V, V, generator=torch.Generator().manual_seed(0))
    table[:, EOS] = -math.inf
    return table


def loop() -> torch.Tensor:
    table = torch.full((V, V), -30.0)
    table[:, 5] = 0.0
    table[5, 5], table[5, 6] = -30.0, 0.0
    return table


def special_mass() -> torch.Tensor:
    table = torch.zeros(V, V)
    table[:, 0], table[:, 1] = 1e4, 1e4
    return table


HOSTILE = {"no eos": no_eos(), "loop": loop(), "uniform": torch.zeros(V, V), "special": special_mass()}


def run(table: torch.Tensor, settings: ReplySettings, rows: int = 1, seed: int = 0):
    start = table[3].expand(rows, -1)
    *_, drafts = decode(Hostile(table), start, [1] * rows, settings, WORDS, range(seed, seed + rows))
    return drafts


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(("t0", "delta"), [(1, 1), (5, 4), (20, 8), (53, 32)])
def test_greedy_ends_within_the_bound(name, t0, delta):
    (draft,) = run(HOSTILE[name], ReplySettings("greedy", floor_start_tokens=t0, floor_delta_tokens=delta))
    assert len(draft.token_ids) <= t0 + delta + 1
    assert draft.stop_reason in ("eos", "floor")
    if name == "no eos":
        assert draft.stop_reason == "floor"
    assert not {0, 1, EOS} & set(draft.token_ids)


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("rule", [{"top_p": 0.9}, {"top_p": 1.0, "top_k": 2}, {"top_p": 0.4}])
def test_sampling_ends_within_the_limit(name, rule):
    t0, delta = 6, 4
    drafts = run(HOSTILE[name], ReplySettings(floor_start_tokens=t0, floor_delta_tokens=delta, **rule), rows=300)
    lengths = [len(draft.token_ids) for draft in drafts]
    assert max(lengths) <= t0 + 2 * delta
    assert {draft.stop_reason for draft in drafts} <= {"eos", "floor", "limit"}
    if name == "no eos":
        assert {draft.stop_reason for draft in drafts} <= {"floor", "limit"}
        for m in range(1, 2 * delta):  # the tail bound, with three standard errors
            bound = 2 ** (-m * (m + 1) / 2 / delta)
            share = sum(length > t0 + m for length in lengths) / len(lengths)
            assert share <= bound + 3 * math.sqrt(bound * (1 - bound) / len(lengths)) + 1e-12


@pytest.mark.slow
@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize("rule", [{"top_p": 0.9}, {"top_p": 1.0, "top_k": 4}, {"top_p": 1.0}])
def test_ten_thousand_sampled_replies_obey_the_tail_bound(name, rule):
    t0, delta = 20, 32
    settings = ReplySettings(temperature=1.0, floor_start_tokens=t0, floor_delta_tokens=delta, **rule)
    lengths = torch.tensor([len(draft.token_ids) for draft in run(HOSTILE[name], settings, rows=10_000)])
    assert lengths.max() <= t0 + 2 * delta
    for m in range(1, 2 * delta):
        bound = 2 ** (-m * (m + 1) / 2 / delta)
        share = (lengths > t0 + m).double().mean().item()
        assert share <= bound + 3 * math.sqrt(bound * (1 - bound) / len(lengths)) + 1e-12
        if name == "no eos" and rule == {"top_p": 1.0}:  # no truncation, no EOS of its own: the bound is exact
            assert share >= bound - 3.5 * math.sqrt(bound * (1 - bound) / len(lengths))


@pytest.mark.parametrize("method", ["greedy", "sample", "beam"])
@pytest.mark.parametrize("name", HOSTILE)
def test_plain_decoding_of_a_model_that_wants_no_end_hits_the_limit(name, method):
    plain = ReplySettings(method, keep_eos=False, floor_start_tokens=None, max_reply_tokens=60, top_p=0.5)
    (draft,) = run(HOSTILE[name], plain)
    if name in ("no eos", "loop"):
        assert (len(draft.token_ids), draft.stop_reason) == (60, "limit")


def test_the_hard_limit_says_so():
    settings = ReplySettings(floor_start_tokens=None, keep_eos=False, max_reply_tokens=30)
    (draft,) = run(no_eos(), settings)
    assert (len(draft.token_ids), draft.stop_reason) == (30, "limit")
    (draft,) = run(no_eos(), ReplySettings(floor_start_tokens=50, max_reply_tokens=7))
    assert (len(draft.token_ids), draft.stop_reason) == (7, "limit")


def test_plain_nucleus_never_ends_where_ours_does():
    """Toy of methods: p = (.45, .30, .15, .08, eos .02) and top-p .9 leaves EOS out."""
    row = torch.full((V,), -math.inf)
    row[[5, 6, 7, 8, EOS]] = torch.tensor([0.45, 0.30, 0.15, 0.08, 0.02]).log()
    table = row.expand(V, V)
    plain = ReplySettings(temperature=1.0, top_p=0.9, keep_eos=False, floor_start_tokens=None, max_reply_tokens=200)
    assert {draft.stop_reason for draft in run(table, plain, rows=50)} == {"limit"}
    consistent = ReplySettings(temperature=1.0, top_p=0.9, floor_start_tokens=None, max_reply_tokens=200)
    drafts = run(table, consistent, rows=600)
    q_eos = 0.02 / (0.45 + 0.30 + 0.15 + 0.02)
    expected = (1 - q_eos) ** 199  # min_reply_tokens forbids the end at the first token
    share = sum(draft.stop_reason == "limit" for draft in drafts) / len(drafts)
    assert abs(share - expected) < 3 * math.sqrt(expected * (1 - expected) / len(drafts))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_broken_numbers_are_refused_in_words(value):
    table = torch.zeros(V, V)
    table[5, 7] = value
    table[3, 5] = 50.0
    with pytest.raises(GenerationError, match="not a number"):
        run(table, ReplySettings())


def test_a_model_without_any_choice_is_refused_in_words():
    with pytest.raises(GenerationError, match="no token"):
        run(torch.full((V, V), -math.inf), ReplySettings())


def test_floor_formula():
    floor = EosFloor(10, 32)
    log_probs = torch.randn(3, V, dtype=torch.float64).log_softmax(-1)
    for emitted in (0, 10, 11, 42, 74):
        result = floor.apply(log_probs, emitted, EOS).exp()
        f = 1 - 2 ** (-max(0, emitted - 10) / 32)
        p_eos = log_probs[:, EOS].exp()
        torch.testing.assert_close(result[:, EOS], 1 - (1 - p_eos) * (1 - f))
        torch.testing.assert_close(result.sum(-1), torch.ones(3, dtype=torch.float64))
    assert torch.equal(floor.apply(log_probs, 10, EOS), log_probs)  # costs nothing up to t0
    rows = floor.apply(log_probs, torch.tensor([0, 20, 42]), EOS)
    torch.testing.assert_close(rows[2], floor.apply(log_probs, 42, EOS)[2])
    assert floor.limit_tokens == 74


def test_stop_reason_floor_means_the_same_draw_would_have_gone_on():
    settings = ReplySettings(floor_start_tokens=3, floor_delta_tokens=2, top_p=1.0)
    table = torch.zeros(V, V)
    counts = Counter()
    for seed in range(200):
        (draft,) = run(table, settings, seed=seed)
        draws = random.Random(seed)
        us = [draws.random() for _ in range(len(draft.token_ids) + 1)]
        if draft.stop_reason != "limit":
            p_eos = 1 / (V - 2) if len(draft.token_ids) >= 1 else 0.0
            assert (us[-1] < p_eos) == (draft.stop_reason == "eos")
        counts[draft.stop_reason] += 1
    assert counts["eos"] > 10
    assert counts["floor"] > 10


def test_the_nucleus_is_the_shortest_prefix_of_the_sorted_tokens_ties_by_id():
    torch.manual_seed(0)
    scores = torch.randn(50, 40).mul(2).round()  # many ties
    remaining = ConsistentTopP(0.8, None)(None, scores) > -math.inf
    for row, p in zip(remaining, scores.softmax(-1), strict=True):
        order = sorted(range(40), key=lambda i: (-p[i].item(), i))
        mass, expected = 0.0, set()
        while mass < 0.8 - 1e-6:
            expected.add(order[len(expected)])
            mass = p[list(expected)].sum().item()
        assert set(row.nonzero().flatten().tolist()) == expected


def test_consistent_truncation_formulas():
    log_probs = torch.tensor([[0.45, 0.02, 0.08, 0.30, 0.15]]).log()  # eos is id 1
    for rule, remaining in [
        (ConsistentTopP(0.7, 1), [0, 1, 3]),
        (ConsistentTopP(0.75, 1), [0, 1, 3]),
        (ConsistentTopP(0.76, 1), [0, 1, 3, 4]),
        (ConsistentTopP(0.01, 1), [0, 1]),
        (ConsistentTopP(0.7, None), [0, 3]),
        (ConsistentTopK(2, 1), [0, 1, 3]),
        (ConsistentTopK(2, None), [0, 3]),
        (ConsistentTopK(99, 1), [0, 1, 2, 3, 4]),
    ]:
        q = rule(None, log_probs).softmax(-1)[0]
        p = log_probs.exp()[0]
        expected = torch.zeros(5)
        expected[remaining] = p[remaining] / p[remaining].sum()
        torch.testing.assert_close(q, expected, rtol=1e-6, atol=1e-6)


def hf_sample(model, rules, options, rows, limit, seed):
    torch.manual_seed(seed)
    prompt = torch.full((rows, 4), 5)
    return model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        logits_processor=rules,
        do_sample=True,
        max_new_tokens=limit,
        pad_token_id=0,
        eos_token_id=EOS,
        **options,
    )[:, 4:]


def test_the_list_keeps_the_bound_in_transformers_generate_and_the_other_order_loses_it(tokenizer):
    """methods: with T = .7 and p = .9 after the floor, as transformers orders it, far more replies run past t0 + 4."""
    from chatbot.model.network import XianliaoForCausalLM
    from tests.conftest import tiny_config

    torch.manual_seed(0)
    model = XianliaoForCausalLM(tiny_config(tokenizer, vocab_size=V)).eval()

    class NeverEos:  # stands in for a model that always says 5 or 6
        def __call__(self, input_ids, scores):
            scores = torch.full_like(scores, -math.inf)
            scores[:, 5], scores[:, 6] = math.log(0.6), math.log(0.4)
            return scores

    t0, delta, rows, limit = 4, 32, 1500, 9
    settings = ReplySettings(temperature=0.7, top_p=0.9, floor_start_tokens=t0, floor_delta_tokens=delta)
    bound = 2 ** (-4 * 5 / 2 / delta)  # P(length > t0 + 4)

    def share(rules, options):
        replies = hf_sample(model, LogitsProcessorList([NeverEos(), *rules]), options, rows, limit, 0)
        return (replies != EOS).all(-1).float().mean().item() if replies.shape[1] == limit else 0.0

    ours = share(reply_processors(settings, WORDS, 4), {"temperature": 1.0, "top_p": 1.0, "top_k": 0})
    theirs = share(
        [EosFloorProcessor(settings.floor, EOS, 4, settings.limit_tokens)],
        {"temperature": 0.7, "top_p": 0.9, "top_k": 0},
    )
    slack = 3 * math.sqrt(bound * (1 - bound) / rows)
    assert ours <= bound + slack
    assert theirs > bound + slack


@pytest.mark.parametrize("changes", [{}, {"max_reply_tokens": 3}, {"min_reply_tokens": 5}])
def test_generate_with_the_list_gives_our_own_reply(bot, dialogues, changes):
    """Same bans, floor, limit and speaker: the reply belongs to the other speaker than the last turn."""
    for turns in dialogues[:10]:
        for end in (1, 2):
            ours = bot.respond(turns[:end], seed=0, method="greedy", **changes)
            assert generated(bot, turns[:end], **changes) == list(ours.token_ids)


def test_processors_come_in_order():
    rules = reply_processors(ReplySettings(temperature=0.7, top_p=0.9, top_k=5, min_reply_tokens=0), WORDS, 3)
    kinds = [SuppressTokensLogitsProcessor, TemperatureLogitsWarper, EosFloorProcessor, ConsistentTopK, ConsistentTopP]
    assert [type(rule) for rule in rules] == kinds
    assert not any(isinstance(rule, TopPLogitsWarper) for rule in rules)


def test_a_batch_gives_each_row_what_it_gets_alone(bot, dialogues):
    prompts = [bot.layout.prompt([bot.tokenizer.encode(turn) for turn in turns[:3]], 200) for turns in dialogues[:12]]

    def answers(chosen, seeds):
        steps, logits = prefill(bot.model, chosen)
        speakers = [prompt.reply_speaker for prompt in chosen]
        *_, drafts = decode(steps, logits, speakers, bot.settings, bot.vocabulary, seeds)
        return [(draft.token_ids, draft.stop_reason) for draft in drafts]

    together = answers(prompts, range(12))
    alone = [answers([prompt], [seed])[0] for seed, prompt in enumerate(prompts)]
    assert together == alone
    assert len({tuple(ids) for ids, _ in together}) > 6


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"temperature": 0}, "temperature"),
        ({"temperature": 1e-40}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": "0.8"}, "number"),
        ({"top_k": 2.5}, "whole number"),
        ({"top_p": None}, "number"),
        ({"min_reply_tokens": -1}, "min_reply_tokens"),
        ({"top_p": 0}, "top_p"),
        ({"top_p": 1.5}, "top_p"),
        ({"top_k": -1}, "top_k"),
        ({"min_p": 1.5}, "min_p"),
        ({"typical_p": 0}, "typical_p"),
        ({"repetition_penalty": 0.5}, "repetition_penalty"),
        ({"no_repeat_ngram": -1}, "no_repeat_ngram"),
        ({"floor_start_tokens": None}, "might never end"),
        ({"floor_delta_tokens": 0}, "delta"),
        ({"floor_start_tokens": 2, "min_reply_tokens": 3}, "min_reply_tokens"),
        ({"method": "best"}, "method"),
        ({"method": "beam", "candidates": 2}, "candidates are sampled"),
        ({"beams": 0}, "beams"),
        ({"banned_words": "词"}, "list of words"),
        ({"banned_words": [" "]}, "list of words"),
    ],
)
def test_settings_that_cannot_work_are_refused(changes, words):
    with pytest.raises(ReplySettingsError, match=words):
        ReplySettings(**changes)
