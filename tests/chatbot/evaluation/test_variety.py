"""The report on other ways to say a reply."""

from __future__ import annotations

import json
import math
from itertools import zip_longest

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import save
from chatbot.decoding.settings import ReplySettings
from chatbot.evaluation.latent.interpolation import interpolation_report, line_between, rank_correlation
from chatbot.evaluation.variety import (
    candidates_of,
    difference,
    diverse_replies,
    is_above,
    latent_report,
    main,
    methods_of,
)
from chatbot.model.latent.gaussian import Normal, directions
from chatbot.model.latent.measures import mutual_information
from tests.chatbot.model.test_latent import TEXTS, latent_model


@pytest.mark.slow
def test_candidates_are_variants_of_one_seed_or_replies_of_several(bot):
    methods = methods_of(bot)
    assert candidates_of(bot, ["你好"], methods["best of n, spread 1.0"], 3) == [
        bot.reply(["你好"], 3, variation=number) for number in range(5)
    ]
    assert candidates_of(bot, ["你好"], methods["temperature 0.5"], 3) == [
        bot.reply(["你好"], 3 + number, temperature=0.5) for number in range(5)
    ]


def test_diverse_beams_are_greedy_first_and_differ_more_the_stronger_they_are(bot):
    """Without strength all groups are greedy; with a large one no two choose the same token at a step."""
    greedy = bot.reply(["你好"], 0, method="greedy")
    assert diverse_replies(bot, ["你好"], 0.0) == [greedy] * 5
    replies = diverse_replies(bot, ["你好"], 1000.0)
    assert replies[0] == greedy
    assert len(set(replies)) == 5
    for tokens in zip_longest(*(bot.tokenizer.encode(text) for text in replies)):
        rest = [token for token in tokens if token is not None]
        assert len(set(rest)) == len(rest)


def test_equal_candidates_have_no_difference(bot):
    assert difference(bot, ["你好"] * 5) == 0
    assert difference(bot, ["你好", "再见"]) > 0.5


@pytest.mark.parametrize(
    ("nats", "low", "expected"), [(1.5, 0.36, True), (1.5, 0.34, False), (0.9, 0.9, False), (2.1, 0.9, False)]
)
def test_a_method_is_above_the_curve_of_the_temperatures(nats, low, expected):
    rows = {
        "temperature 0.5": {"base_nats_per_unit": 1.0, "difference_interval": (0.1, 0.2)},
        "temperature 1": {"base_nats_per_unit": 2.0, "difference_interval": (0.4, 0.5)},
    }
    assert is_above(rows, {"base_nats_per_unit": nats, "difference_interval": (low, low + 0.1)}) is expected


@pytest.mark.parametrize("kind", ["gaussian", "discrete"])
def test_an_untrained_latent_says_nothing(bot, tokenizer, kind):
    """With zero projections all z cost the same; with q = p the bounds are exact, and no dimension is active."""
    model = latent_model(tokenizer, kind, skips=0)
    if kind == "gaussian":
        for mlp in (model.latent.prior_mlp, model.latent.recognition_mlp):
            torch.nn.init.zeros_(mlp[2].weight)
    untrained = Chatbot(model, tokenizer, ReplySettings())
    report = latent_report(untrained, untrained, TEXTS, samples=5)
    assert report["with_z"] == report["base"] == report["shuffled"] == pytest.approx(report["checkpoint_before"])
    assert report["shuffle_cost"] == 0
    assert report["gain_by_position"] == (0.0,) * 8
    assert report["iwae_5"] == pytest.approx(report["base"], rel=1e-4)  # discrete: sum_k p(k|c) p(r|c,k) = p(r|c)
    assert report["mutual_information"] == pytest.approx(0, abs=0.05)
    if kind == "gaussian":
        assert report["bound"] == pytest.approx(report["base"], rel=1e-4)
        assert (report["active_units"], report["divergence"]) == (0, 0)
        assert report["token_accuracy_recognition"] == report["token_accuracy_none"]


def test_the_mutual_information_of_distinct_posteriors_is_the_log_of_their_number():
    means = torch.tensor([[-30.0], [0.0], [30.0], [60.0]])
    q = Normal(means, torch.zeros(4, 1))
    assert mutual_information(q, q.at(torch.randn(4, 1))) == pytest.approx(math.log(4), abs=1e-4)
    same = Normal(torch.zeros(4, 1), torch.zeros(4, 1))
    assert mutual_information(same, same.at(torch.randn(4, 1))) == pytest.approx(0, abs=1e-6)


def test_the_rank_correlation_is_spearmans():
    assert rank_correlation([1, 2, 3, 4]) == pytest.approx(1)
    assert rank_correlation([4, 3, 2, 1]) == pytest.approx(-1)
    assert rank_correlation([1, 1, 1]) == 0
    assert rank_correlation([1, 2, 2, 5]) == pytest.approx(0.9487, abs=1e-4)  # the ties share rank 2.5


def test_a_line_leads_from_one_reply_to_the_other(tokenizer):
    bot = Chatbot(
        latent_model(tokenizer, skips=2.0), tokenizer, ReplySettings(floor_start_tokens=8, floor_delta_tokens=4)
    )
    texts = line_between(bot, ["你好"], 3)
    assert len(texts) == 5
    ends = (1.5 * directions(3, 2, bot.model.latent.size)).clamp(-4, 4).tolist()
    assert [texts[0], texts[-1]] == [bot.reply(["你好"], 0, method="greedy", point=end) for end in ends]
    assert len({text for seed in range(6) for text in line_between(bot, ["你好"], seed)}) > 1
    report = interpolation_report(bot, bot, [["你好"], ["在吗"], ["吃了吗"]])
    assert report["lines"] + report["lines_with_equal_ends"] == 3
    assert -1 <= report["correlation"] <= 1
    assert report["bump_interval"][0] <= report["bump"] <= report["bump_interval"][1]


@pytest.mark.slow
def test_the_command_writes_the_report(tokenizer, checkpoint, tmp_path, capsys):
    save(tmp_path / "bot", latent_model(tokenizer), tokenizer, {"floor_start_tokens": 12, "floor_delta_tokens": 4}, {})
    (tmp_path / "data.jsonl").write_text("".join(json.dumps(turns) + "\n" for turns in TEXTS), encoding="utf-8")
    flags = ["--base", str(checkpoint), "--data", str(tmp_path / "data.jsonl"), "--output", str(tmp_path / "report")]
    assert main(["--checkpoint", str(tmp_path / "bot"), *flags]) == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text(encoding="utf-8"))
    assert {"temperature 0.75", "top-p 0.8", "best of n, spread 1.0", "diverse beams 0.5", "latent, spread 1.5"} <= set(
        report["methods"]
    )
    assert report["latent"]["iwae_50"] > 0
    assert report["interpolation"]["lines"] >= 0
    assert "| latent, spread 1.5 |" in capsys.readouterr().out
    assert (tmp_path / "report" / "ellipses.svg").read_text(encoding="utf-8").count("<ellipse") >= 1
    assert (tmp_path / "report" / "pareto.png").stat().st_size > 5_000
