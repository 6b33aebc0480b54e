"""Settings: None switches off, UNCHANGED leaves alone, and a checkpoint decodes as its file says."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest
import torch

from chatbot.chat.bot import Chatbot
from chatbot.checkpoint.folder import save
from chatbot.cli import WITHOUT_OPTION, build_chat_parser
from chatbot.decoding.rules.repetition import repetition_rules
from chatbot.decoding.settings import OPTIONS, UNCHANGED, ReplySettings, ReplySettingsError, settings_from

RECORDED = ReplySettings(no_repeat_ngram=2, repeat_cost=4.0, floor_start_tokens=20, max_reply_tokens=30)


def test_none_switches_off():
    assert RECORDED.with_changes(floor_start_tokens=None).floor is None
    assert RECORDED.with_changes(floor_start_tokens=None, max_reply_tokens=50).limit_tokens == 50
    assert repetition_rules(RECORDED.with_changes(repeat_cost=None), 2)[0].cost == float("inf")
    assert RECORDED.with_changes(max_reply_tokens=None).limit_tokens == 20 + 2 * 32
    with pytest.raises(ReplySettingsError, match="temperature must be a number, got None"):
        RECORDED.with_changes(temperature=None)
    with pytest.raises(ReplySettingsError, match="might never end"):
        RECORDED.with_changes(floor_start_tokens=None, max_reply_tokens=None)


def test_another_method_than_sampling_has_one_candidate():
    """Also on a checkpoint that samples several, such as the bundled bot: temperature 0 of the API is greedy."""
    settings = ReplySettings(candidates=4)
    assert settings.with_changes(method="greedy").candidates == 1
    assert settings.with_changes(method="beam", beams=3).candidates == 1
    assert settings.with_changes(temperature=0.5).candidates == 4
    with pytest.raises(ReplySettingsError, match="candidates are sampled"):
        settings.with_changes(method="greedy", candidates=2)


def test_unchanged_leaves_every_setting_alone():
    assert RECORDED.with_changes(**{field.name: UNCHANGED for field in fields(ReplySettings)}) == RECORDED
    assert RECORDED.with_changes() == RECORDED


def test_an_unknown_setting_names_the_nearest():
    with pytest.raises(ReplySettingsError, match="no setting temprature; did you mean temperature"):
        RECORDED.with_changes(temprature=1.0)


def test_the_bot_switches_off_too(bot):
    """A reply without a floor is as long as the limit allows."""
    changes = {"floor_start_tokens": None, "max_reply_tokens": 100, "min_reply_tokens": 100}
    assert len(bot.respond(["你好"], seed=0, **changes).token_ids) == 100


@pytest.mark.parametrize(
    "generation",
    [
        {"method": "greedy"},
        {"keep_eos": False},
        {"max_reply_tokens": 9},
        {"floor_start_tokens": None, "max_reply_tokens": 9},
        {"repeat_cost": None, "no_repeat_ngram": 2},
        {"method": "beam", "beams": 3, "min_reply_tokens": 2, "banned_words": ["词"]},
    ],
)
def test_a_checkpoint_decodes_as_its_file_says(generation):
    settings = settings_from({"do_sample": True, "max_length": 20, "eos_token_id": 2, **generation})
    for name, value in generation.items():
        assert getattr(settings, name) == (tuple(value) if isinstance(value, list) else value)


def test_null_of_a_setting_that_is_always_on_is_its_default():
    assert settings_from({"temperature": None, "top_k": None}) == ReplySettings()


@pytest.mark.parametrize(
    "generation",
    [
        {"floor_start_tokens": 4033},
        {"floor_start_tokens": 10**6, "min_reply_tokens": 10**6},
        {"floor_delta_tokens": 2017},
        {"floor_start_tokens": 10**6, "max_reply_tokens": 10},
        {"floor_start_tokens": None, "max_reply_tokens": 4097},
    ],
)
def test_a_file_cannot_ask_for_endless_replies(generation):
    with pytest.raises(ReplySettingsError, match="at most 4096"):
        settings_from(generation)


def test_a_file_may_ask_for_replies_of_4096_tokens():
    assert settings_from({"floor_start_tokens": 4032}).limit_tokens == 4096
    assert settings_from({"floor_start_tokens": None, "max_reply_tokens": 4096}).limit_tokens == 4096


def test_a_loaded_bot_has_the_settings_of_its_file(model, tokenizer, tmp_path):
    generation = {"method": "greedy", "floor_start_tokens": None, "max_reply_tokens": 7}
    save(tmp_path / "bot", model, tokenizer, generation, {})
    assert json.loads((tmp_path / "bot" / "generation_config.json").read_text())["floor_start_tokens"] is None
    assert Chatbot.from_pretrained(tmp_path / "bot").settings == ReplySettings(**generation)


def test_every_number_has_a_range_and_is_an_option_of_the_terminal():
    numbers = {field.name for field in fields(ReplySettings) if field.default.__class__ in (int, float)}
    assert {option.name for option in OPTIONS} == numbers | {
        *("repeat_cost", "max_reply_tokens", "top_logprobs", "floor_max_start_tokens")
    }
    for option in OPTIONS:
        default = getattr(ReplySettings(), option.name)
        assert default is None if option.can_be_off and default is None else type(default) is option.kind
    parsed = build_chat_parser().parse_args([])
    assert {option.name for option in OPTIONS} - {"top_logprobs"} <= set(vars(parsed))


def test_every_setting_is_an_option_of_the_terminal_or_has_a_reason_not_to_be():
    options = set(vars(build_chat_parser().parse_args([])))
    missing = {field.name for field in fields(ReplySettings)} - options
    assert missing == set(WITHOUT_OPTION)
    assert all(len(reason.split()) > 3 for reason in WITHOUT_OPTION.values())
    assert {"greedy", "beams"} <= options  # the method


def test_values_from_elsewhere_are_shown_in_one_short_line():
    for changes in ({"method": "x\n" * 9999}, {"temperature": "9" * 9999}, {"keep_eos": [["x"] * 9999] * 9999}):
        with pytest.raises(ReplySettingsError) as refusal:
            settings_from(changes)
        assert "\n" not in str(refusal.value)
        assert len(str(refusal.value)) < 300


@pytest.mark.parametrize("nats", [1e30, 10**400, float("inf"), 1e300])
def test_a_cost_that_float32_cannot_sum_forbids(nats):
    assert settings_from({"repeat_cost": nats}).repeat_cost is None


@pytest.mark.parametrize("cost", [10**30, 10**29, 10**400, 3])
def test_an_integer_of_any_size_in_a_checkpoint_can_be_decoded_with(cost):
    settings = settings_from({"no_repeat_ngram": 2, "repeat_cost": cost, "repetition_penalty": 2})
    logits = torch.ones(1, 5)
    (rule,) = repetition_rules(settings, 0)
    rule.apply(logits, [[1, 2, 1]], [[]])
    assert logits[0, 2] < 0
    assert all(type(getattr(settings, option.name)) in (option.kind, type(None)) for option in OPTIONS)
