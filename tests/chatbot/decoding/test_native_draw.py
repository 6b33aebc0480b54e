"""The compiled draw is the one that the decode loop defines, row by row."""

from __future__ import annotations

import random

import pytest
import torch

from chatbot.decoding.candidates import Draft, next_candidates
from chatbot.decoding.native_draw import can_draw, draw
from chatbot.decoding.sampler import SampledReply, _draw
from chatbot.decoding.settings import ReplySettings
from chatbot.decoding.vocabulary import Vocabulary
from chatbot.native import library as native

pytestmark = pytest.mark.skipif(native.library() is None, reason="no C compiler here")
END, SIZE, ROWS = 2, 701, 400
VOCABULARY = Vocabulary(END, (0, 1))
WAYS = {
    "default": {},
    "everything": {"top_p": 1.0},
    "nearly everything": {"top_p": 0.9999999},
    "narrow and hot": {"top_p": 0.3, "temperature": 1.7},
    "one token": {"top_p": 1e-6},
    "cold": {"temperature": 0.01},
    "end not kept": {"top_p": 0.6, "keep_eos": False},
    "rules": {"no_repeat_ngram": 2, "repeat_cost": 3.0, "repetition_penalty": 1.2, "min_reply_tokens": 3},
    "forbidden": {"no_repeat_ngram": 1},
    "floor": {"floor_start_tokens": 2, "floor_delta_tokens": 3},
}


def candidates_and_rows(settings: ReplySettings, sharpness: float):
    """Candidates after replies of different lengths, and the rows they belong to."""
    torch.manual_seed(0)
    draw = random.Random(0)
    logits = torch.randn(ROWS, SIZE) * sharpness
    logits[: ROWS // 4] = logits[: ROWS // 4].round()  # with many equal ones
    logits[:, END] += draw.random() * 3 * sharpness
    replies = [[draw.randrange(3, 60) for _ in range(draw.randrange(9))] for _ in range(ROWS)]
    rows = [SampledReply(settings, random.Random(number), (), 1, Draft(reply)) for number, reply in enumerate(replies)]
    return next_candidates(logits, settings, VOCABULARY, replies, [()] * ROWS), rows


@pytest.mark.parametrize("sharpness", [0.3, 3.0])
@pytest.mark.parametrize("way", WAYS)
def test_it_draws_what_the_loop_draws(way, sharpness):
    settings = ReplySettings(**WAYS[way])
    candidates, rows = candidates_and_rows(settings, sharpness)
    assert can_draw(candidates.ruled, settings)
    uniform = [random.Random(number).random() for number in range(ROWS)]
    tokens, by_floor, log_probs = draw(candidates, settings, END, uniform)
    expected, by_floor_expected = _draw(candidates, settings, END, rows)
    differing = [row for row in range(ROWS) if tokens[row] != expected[row]]
    assert len(differing) <= ROWS // 100  # a number on a border, to the last digits; equal tokens make such borders
    assert [by_floor[row] for row in range(ROWS) if row not in differing] == [
        by_floor_expected[row] for row in range(ROWS) if row not in differing
    ]
    model_log_probs = candidates.model_log_probs[torch.arange(ROWS), tokens]
    torch.testing.assert_close(torch.tensor(log_probs).float(), model_log_probs, rtol=1e-5, atol=1e-5)


def test_a_row_draws_the_same_wherever_it_stands():
    settings = ReplySettings(**WAYS["rules"], floor_start_tokens=4)
    candidates, _ = candidates_and_rows(settings, 1.0)
    uniform = [random.Random(number).random() for number in range(ROWS)]
    together = draw(candidates, settings, END, uniform)
    for row in range(0, ROWS, 7):
        part = type(candidates)(
            candidates.allowed[row : row + 1],
            candidates.ruled[row : row + 1],
            candidates.emitted[row : row + 1],
            candidates.floor,
        )
        assert [values[0] for values in draw(part, settings, END, uniform[row : row + 1])] == [
            values[row] for values in together
        ]


def test_what_it_cannot_do_is_left_to_the_loop():
    logits = torch.zeros(1, SIZE)
    for changes in {"top_k": 5}, {"typical_p": 0.5}, {"min_p": 0.1}, {"method": "greedy"}:
        assert not can_draw(logits, ReplySettings(**changes))
