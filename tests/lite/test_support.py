"""A checkpoint with settings that the C runtime does not have is refused."""

from __future__ import annotations

from dataclasses import fields

import pytest

from chatbot.checkpoint.export.lite import SETTINGS, UNSUPPORTED, check_support
from chatbot.decoding.settings import ReplySettings
from chatbot.errors import CheckpointError
from chatbot.model.config import XianliaoConfig

CONFIG = XianliaoConfig(layer_types=["linear_elu1", "sliding_softmax"], num_hidden_layers=2, positions="rope")


@pytest.mark.parametrize(
    "changes",
    [
        {"dry_multiplier": 0.8},
        {"xtc_probability": 0.5},
        {"top_n_sigma": 1.0},
        {"presence_penalty": 0.5},
        {"frequency_penalty": -0.5},
        {"logit_bias": {5: 1.0}},
        {"candidates": 2, "rank_prior": 0.5},
    ],
)
def test_what_the_runtime_does_not_have_is_refused(tokenizer, changes):
    check_support(CONFIG, tokenizer, ReplySettings())
    with pytest.raises(CheckpointError, match=f"setting {list(changes)[-1]}"):
        check_support(CONFIG, tokenizer, ReplySettings(**changes))


def test_every_setting_is_in_the_file_or_refused_or_without_effect():
    in_other_parts = {"method", "beams", "banned_words", "script", "top_logprobs"}
    of_rules_that_are_off = {"dry_base", "dry_allowed_length", "xtc_threshold"}
    known = {*SETTINGS, *UNSUPPORTED, *in_other_parts, *of_rules_that_are_off} - {"greedy"}
    assert known == {field.name for field in fields(ReplySettings)}
