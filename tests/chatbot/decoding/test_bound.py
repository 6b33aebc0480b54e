"""The bound of greedy and beam search, reached only where EOS and another token tie, and the reasons that beams report."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from chatbot.decoding.loop import decode
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from tests.chatbot.decoding.test_loop import EOS, HOSTILE, WORDS, Hostile, V, run

LAST = V - 1
"""An EOS with the highest id: `argmax` and `topk` decide ties for the lower one."""


def certain() -> torch.Tensor:
    """A model that gives probability 1 to one token, so that the floor halves it exactly after t0 + delta tokens."""
    table = torch.full((V, V), -math.inf)
    table[:, 5] = 0.0
    return table


def draft_of(table: torch.Tensor, settings: ReplySettings):
    *_, (draft,) = decode(Hostile(table), table[3][None], [1], settings, Vocabulary(LAST, (0, 1)), [0])
    return draft


@pytest.mark.parametrize(("t0", "delta"), [(1, 1), (5, 1), (3, 2), (5, 4), (20, 8), (64, 32)])
def test_only_a_tie_reaches_the_bound(t0, delta):
    floor, table = {"floor_start_tokens": t0, "floor_delta_tokens": delta}, certain()
    greedy = ReplySettings("greedy", **floor)
    tied = draft_of(table, greedy)
    assert len(tied.token_ids) == greedy.bound_tokens == t0 + delta + 1
    assert tied.stop_reason == ("limit" if delta == 1 else "floor")  # for delta = 1 the bound is the hard limit
    assert len(draft_of(table, ReplySettings("beam", **floor)).token_ids) <= t0 + delta + 1
    table[:, 6] = -6.0  # the token is not certain any more, so EOS is the likeliest one
    untied = draft_of(table, greedy)
    assert (len(untied.token_ids), untied.stop_reason) == (t0 + delta, "floor")
    assert len(draft_of(table, ReplySettings("beam", **floor)).token_ids) <= t0 + delta


def test_for_a_delta_of_one_the_bound_is_the_limit():
    for t0, delta in itertools.product((1, 5, 64), (1, 2, 32)):
        settings = ReplySettings("greedy", floor_start_tokens=t0, floor_delta_tokens=delta)
        assert (settings.bound_tokens == settings.limit_tokens) == (delta == 1)


@pytest.mark.parametrize("beams", [1, 2, 3, 4])
@pytest.mark.parametrize("rank", [2, 3, 4])
def test_a_beam_that_the_floor_ended_would_not_have_had_eos_among_its_best(beams, rank):
    """EOS is the token of this rank in every step, and the floor makes it the likeliest."""
    table = torch.full((V, V), -300.0)
    ranked = [5, 6, 7, 8]
    ranked.insert(rank - 1, EOS)
    for position, token in enumerate(ranked):
        table[:, token] = -25.0 * position
    settings = ReplySettings("beam", beams=beams, floor_start_tokens=6, floor_delta_tokens=4)
    (draft,) = run(table, settings)
    assert 6 < len(draft.token_ids) <= settings.bound_tokens
    assert draft.stop_reason == ("eos" if rank <= beams else "floor")


@pytest.mark.parametrize("name", HOSTILE)
def test_beams_are_not_truncated_so_keep_eos_changes_nothing(name):
    floor = {"floor_start_tokens": 5, "floor_delta_tokens": 4}
    (expected,) = run(HOSTILE[name], ReplySettings("beam", beams=3, **floor))
    for truncation in ({"top_p": 0.1}, {"top_k": 1}, {"min_p": 0.9}):
        (draft,) = run(HOSTILE[name], ReplySettings("beam", beams=3, keep_eos=False, **truncation, **floor))
        assert draft == expected
    assert len(expected.token_ids) <= 5 + 4 + 1
    assert WORDS.end_id not in expected.token_ids
