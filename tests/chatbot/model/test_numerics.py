"""The numerical limits that the README of the mixers states, on fewer tokens."""

from __future__ import annotations

import math

import pytest
import torch

from tests.benchmarks import numerics

POWERS = {
    "linear_efficient": None,
    "linear_softmax_feat": None,
    "linear_elu1": 18,
    "linear_taylor1": 19,
    "linear_taylor2": 10,
}


def test_the_table_has_every_mixer_with_a_denominator():
    assert set(numerics.mixers()) == set(POWERS)


@pytest.mark.parametrize("name", POWERS)
def test_activations_overflow_where_the_readme_says(name):
    assert numerics.overflow_power(numerics.mixers()[name]) == POWERS[name]


def test_activations_of_a_bot_are_far_below(bot):
    assert 0 < numerics.largest_activation(bot, 3) < 1e4


@pytest.mark.parametrize(("log_decay", "limit"), [(-0.5, 1e-5), (-5.0, 5e-5), (-1000.0, 2e-3)])
def test_strong_decays_cost_few_digits(log_decay, limit):
    assert numerics.decay_error(log_decay) < limit


@pytest.mark.parametrize("name", POWERS)
def test_errors_do_not_grow_with_the_length(name):
    mix = numerics.mixers()[name]
    assert numerics.length_error(mix, 5000, torch.float32) < 5e-7
    assert numerics.length_error(mix, 5000, torch.bfloat16) < 1e-2


@pytest.mark.parametrize(("tokens", "limit"), [(20_000, 2e-5), pytest.param(1_000_000, 5e-5, marks=pytest.mark.slow)])
def test_a_sum_of_many_tokens_keeps_its_digits_and_dilutes(tokens, limit):
    (drift,) = numerics.state_drift((tokens,)).values()
    output, denominator, weight = drift
    assert max(output, denominator) < limit
    assert 0.2 < weight * tokens < 5


@pytest.mark.parametrize(("position", "limit"), [(1000, 1e-4), (100_000, 6e-3)])
def test_rotary_angles_lose_digits_with_the_position(position, limit):
    assert limit / 1000 < numerics.angle_error(position) < limit


def test_an_error_of_a_broken_value_is_infinite():
    assert numerics.error(torch.tensor([1.0, math.nan]), torch.ones(2, dtype=torch.float64)) == math.inf
