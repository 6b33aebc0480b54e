"""Tests that the benchmarks run; their figures are not checked here."""

from __future__ import annotations

import re
from statistics import median

import pytest

from chatbot import Chatbot
from chatbot.decoding.settings import ReplySettings
from chatbot.native import library as native
from tests.benchmarks import (
    against,
    bakeoff,
    choosing,
    decoding_speed,
    long_conversation,
    prepare_speed,
    serving_speed,
    training_speed,
)
from tests.benchmarks.measure import alternate, latency_row, matmul_peak, reading_seconds, throughput_row, to_markdown
from tests.benchmarks.peers import NanoGPT, gpt2, multiplied, ours
from tests.conftest import SAMPLES


def test_alternating_measures_each():
    calls = []
    seconds = alternate({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert set(seconds) == {"a", "b"}


def test_ratios_above_one_are_ahead_and_a_missed_target_is_marked():
    rows = [latency_row("x", "peer", 0.001, 0.002, 1.5), throughput_row("y", "peer", 100, 2.0, 1.0, 1.1)]
    assert [row.ratio for row in rows] == [2.0, 0.5]
    first, second = to_markdown(rows).splitlines()[2:]
    assert first.endswith("≥ 1.5 |")
    assert second.endswith("≥ 1.1 ✗ |")


def test_a_checkout_that_is_slower_than_a_commit_is_marked():
    faster = against.Task("x", "ms", 1e3, old=[0.2, 0.4, 0.3], new=[0.2, 0.2, 0.1])
    slower = against.Task("x", "ms", 1e3, old=[0.2, 0.2, 0.2], new=[0.25, 0.2, 0.22])
    assert faster.row() == "| x | ms | 300 | 200 | 1.500 | 1.000 to 3.000 |"
    assert slower.row() == "| x | ms | 200 | 220 | 0.909 ✗ | 0.800 to 1.000 |"


@pytest.mark.slow
def test_this_checkout_is_measured_beside_its_last_commit():
    tasks = against.compare("HEAD", rounds=1, seconds=0, dialogues=100)
    assert all(len(task.old) == len(task.new) == 1 and min(task.old + task.new) > 0 for task in tasks)


def test_the_peers_have_our_size():
    sizes = [multiplied(model) for model in (ours(), gpt2())]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.01)
    nano = sum(p.numel() for name, p in NanoGPT().named_parameters() if p.ndim == 2 and "positions" not in name)
    assert nano == pytest.approx(sizes[1], rel=0.01)


def test_the_lengths_are_like_those_of_lccc():
    lengths = sorted(training_speed.lccc_like_lengths())
    assert lengths[len(lengths) // 2] == pytest.approx(28, abs=2)
    assert 300 < lengths[int(0.99 * len(lengths))] < 450


def test_candidates_get_equal_parameters(tokenizer):
    known = bakeoff.candidates()
    from training.setup import build_model

    sizes = {
        name: build_model(bakeoff.with_equal_parameters(known[name].model, tokenizer), tokenizer).num_parameters()
        for name in ("softmax", "linear_gated+conv+gate", "linear_taylor2", "gated_delta:sliding 3:1+gate")
    }
    assert max(sizes.values()) < 1.01 * min(sizes.values())


def test_serving_is_measured(bot, monkeypatch):
    monkeypatch.setattr(serving_speed, "HISTORY", 100)
    assert serving_speed.tokens_per_second(bot, 3) > 0
    waits = serving_speed.first_token_seconds(bot, 64, short=3, running=2)
    assert len(waits) == 3
    assert all(wait > 0 for wait in waits)


def test_rated_candidates_compare_rankings():
    """The ranking of the product chooses apter replies than chance, and no ranking beats the best rating."""
    contexts = choosing.read_contexts()
    means = {name: sum(ratings) / len(contexts) for name, ratings in choosing.table(contexts)}
    assert len(contexts) == 3067
    assert all(len(context.candidates) == 8 for context in contexts)
    assert means["one reply, temperature .6"] + 0.1 < means["best of 4, log p / n^(1/2)"] < means["best rating of 4"]


@pytest.mark.slow
@pytest.mark.alone
def test_preparing_is_measured_killed_and_compared(tmp_path):
    source = tmp_path / "x.jsonl.gz"
    prepare_speed.generate(source, 2000, [SAMPLES / "everyday.jsonl"])
    measured = prepare_speed.measure(source, tmp_path / "set", kill=True, options=["--tokenizer", "default"])
    assert measured["dialogues"] == 2000
    assert measured["same_bytes"]
    assert not measured["set_after_the_kill"]
    assert measured["peak_resident_mb"] > 50
    assert measured["tokens_written"] > 2000


@pytest.mark.slow
def test_the_tables(monkeypatch):
    """On few tokens: nobody reads these figures."""
    monkeypatch.setattr(training_speed, "TOKENS", 512)
    short = ReplySettings("greedy", floor_start_tokens=8, max_reply_tokens=8, min_reply_tokens=8)
    monkeypatch.setattr(decoding_speed, "REPLY", 8)
    monkeypatch.setattr(decoding_speed, "SETTINGS", short)
    rows = training_speed.step_rows(rounds=1, lengths=(256,))
    rows.append(training_speed.padded_row(rounds=1, lengths=[12] * 400, rows=1))
    rows += decoding_speed.single_rows(rounds=1) + decoding_speed.context_rows(rounds=1, contexts=(64, 256))
    rows.append(decoding_speed.batch_row(rounds=1, rows=2))
    assert all(row.ours > 0 and row.peer > 0 for row in rows)
    assert to_markdown(rows).count("\n") == len(rows) + 1
    assert matmul_peak(1) > 1e9
    assert reading_seconds(512 * 512, int8=True, rounds=1) > 0
    if native.library() is not None:
        price = decoding_speed.int8_price(dialogues=[["你好", "你好呀"], ["吃了吗", "吃了"], ["晚安", "好梦"]])
        assert re.match(r"int8 costs [+-]\d\.\d{4} nats/unit, 95 % .* to .* over 3 dialogues", price)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.skipif(native.library() is None, reason="needs a C compiler")
def test_no_turn_of_a_hundred_is_slow_to_read():
    """The slowest of 100 messages takes at most three times the median of the first ten, as the README says."""
    spent, drops = long_conversation.reading_milliseconds(Chatbot.from_pretrained("default"), 100)
    assert len(spent) == 100
    assert drops > 0  # the context was full, and old turns were dropped
    assert max(spent) <= 3 * median(spent[:10])
